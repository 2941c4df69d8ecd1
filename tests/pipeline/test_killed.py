"""Killed at any moment (`kill -9`) and run again: the same result, to the bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from spectrim import hub, pipeline
from spectrim.hub.stream import open_streamed, save_streamed
from spectrim.pipeline.streaming import (
    CompressedParts,
    StreamSizes,
    streamable,
    streamed_decomposition,
)
from spectrim.refinement import Progress
from spectrim.storage import read_tensors
from spectrim.workspace import Workspace
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

KILLS = 20
SIZES = StreamSizes(batch_rows=2, logits_rows=1, activation_bytes=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("killed")
    text_file(place / "text.txt")
    tiny_llama().double().save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    return place


def run(root: Path, cache: Path, output: Path) -> None:
    """Calibrate, decompose, plan and save, in float64."""
    opened = open_streamed(root / "model", torch.float64)
    recipe = streamable(small_recipe(root / "text.txt"))
    progress = Progress(Workspace(cache))
    with streamed_decomposition(opened, recipe, SIZES, progress) as decomposition:
        plan = pipeline.plan(decomposition, recipe)
        parts = CompressedParts(opened, decomposition, plan, torch.float64)
        save_streamed(opened, parts, output, parts.config(), hub.SaveOptions(overwrite=True))


def in_child(work: Callable[[], None], killed_after: float) -> bool:
    """Run `work` in a copy of this process; True when it ended before it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + killed_after
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "it failed by itself"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def contents(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors below a directory, by file and name."""
    found = {}
    for path in sorted(directory.rglob("*.safetensors")):
        tensors, _ = read_tensors(path)
        found |= {f"{path.name}|{name}": tensor for name, tensor in tensors.items()}
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_streamed_run_killed_at_random_moments(root, tmp_path):
    """In a new process: one that ran other tests has threads, which no fork carries over."""
    process = multiprocessing.get_context("spawn").Process(target=kill, args=(root, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0


def kill(root: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    start = time.monotonic()
    run(root, tmp_path / "calm", tmp_path / "expected")
    whole = time.monotonic() - start
    expected = contents(tmp_path / "calm")
    source, kills, runs = random.Random(0), 0, 0
    cache, output = tmp_path / "cache", tmp_path / "output"
    while kills < KILLS:
        moment = source.uniform(0.05, 0.9) * whole
        if in_child(partial(run, root, cache, output), moment):
            runs += 1
            assert _same(contents(cache), expected)
            cache, output = tmp_path / f"cache{runs}", tmp_path / f"output{runs}"
        else:
            kills += 1
            if output.exists():
                hub.load(output)
    run(root, cache, output)
    assert _same(contents(cache), expected)
    model, _ = hub.load(output)
    calm, _ = hub.load(tmp_path / "expected")
    for one, other in zip(model.parameters(), calm.parameters(), strict=True):
        assert torch.equal(one, other)


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return set(found) == set(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )
