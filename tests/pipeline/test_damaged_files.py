"""A flipped bit in anything that is stored: made again with a warning, never used."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectrim.allocation import LayerTimes
from spectrim.calibration import in_memory
from spectrim.calibration.blockwise import BlockwiseWalk
from spectrim.checkpoint.save_sharded import open_streamed
from spectrim.data import BlockSettings
from spectrim.data.tasks import write_task
from spectrim.evaluation.speed.layer_times import TimingSpec
from spectrim.models.offload import StreamSizes
from spectrim.pipeline import latency_table
from spectrim.pipeline.benchmark import BenchSettings, bench
from spectrim.pipeline.compress import compress
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.presets import PRESETS
from spectrim.pipeline.recipe import (
    EmbeddingRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
    RefinementRecipe,
    TaskRecipe,
)
from spectrim.planning import probe, solver
from spectrim.planning.lazy_decomposition import LayerFiles
from spectrim.pruning import prune
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.statistics._stored import Parts
from spectrim.training import loop
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

PLAIN = {
    "hessian_averaging": HessianAveragingRecipe(weight=0),
    "probe": ProbeRecipe(per_layer=False, joint=False),
}
Result = dict[str, Tensor]
Work = Callable[[Path], Result]
"""Compresses with all that it stores below the directory."""


def flip_bit(path: Path, source: random.Random) -> None:
    """Flip a bit behind the length of the header, that is, of anything that is said."""
    data = bytearray(path.read_bytes())
    data[source.randrange(8, len(data))] ^= 1 << source.randrange(8)
    path.write_bytes(data)


def recipe_in(root: Path, **changes: Any) -> Recipe:
    recipe = small_recipe(text_file(root / "text.txt"), **(PLAIN | changes))
    given = replace(recipe.calibration, sequences=6, tokens_per_batch=48)
    return recipe.with_changes(calibration=replace(given, **changes.get("calibration", {})))


def whole(root: Path, **changes: Any) -> Work:
    sampling = changes.pop("sampling", "random")
    recipe = recipe_in(root, **changes)
    recipe = recipe.with_changes(calibration=replace(recipe.calibration, sampling=sampling))

    def work(place: Path) -> Result:
        result = compress(tiny_llama(), tiny_tokenizer(), recipe, RunContext(Cache(place)))
        return dict(result.model.state_dict())

    return work


def selection(root: Path) -> Work:
    write_task(
        lambda: iter([(f"after {n} is ", str(n + 1)) for n in range(40)]), root / "t.jsonl"
    )
    recipe = PRESETS["task"]
    assert recipe.pruning is not None
    quick = {"steps": 4, "prune_steps": 2, "batch_size": 4, "scoring_examples": 8}
    recipe = recipe.with_changes(
        budget=0.4,
        calibration=replace(recipe.calibration, sequences=6, tokens_per_batch=64),
        pruning=replace(recipe.pruning, **quick),
        task=TaskRecipe(data=str(root / "t.jsonl")),
    )

    def work(place: Path) -> Result:
        result = compress(tiny_llama(), tiny_tokenizer(), recipe, RunContext(Cache(place)))
        return dict(result.model.state_dict())

    return work


def streamed(root: Path) -> Work:
    recipe = recipe_in(root)
    tiny_llama().double().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")

    def work(place: Path) -> Result:
        opened = open_streamed(root / "model", torch.float64)
        opened.streamed.sizes = StreamSizes(2, 2, 0)
        context = RunContext(Cache(place))
        found = factorize(opened.streamed, opened.tokenizer, recipe, context)
        lefts = {name: found.factors[name].left.clone() for name in found.shapes}  # of a file
        tensors = {f"{name}|left": left for name, left in lefts.items()}
        return tensors | {f"{name}|curve": curve for name, curve in found.curves.items()}

    return work


def rows(root: Path) -> Work:
    recipes = {"svd": recipe_in(root, method="svd", allocation="uniform", layer="lowrank")}

    def work(place: Path) -> Result:
        blocks = BlockSettings(length=24, max_tokens=100, keep_tail=True)
        text = str(root / "text.txt")
        settings = BenchSettings((text,), blocks, rows=place, cache=None)
        found = bench(tiny_llama(), tiny_tokenizer(), recipes, (0.7,), settings)
        losses = [row.loss_increase[text] for row in found.rows]
        return {"losses": torch.tensor([*losses, found.dense.loss[text]])}

    return work


FINISHED: dict[str, tuple[Callable[[Path], Work], str]] = {
    "usage": (whole, "usage-*"),
    "statistics": (whole, "calibration-*"),
    "sample": (lambda root: whole(root, sampling="leverage"), "sample-*"),
    "decomposition": (whole, "decomposition-*"),
    "embedding": (lambda root: whole(root, embeddings=EmbeddingRecipe()), "embedding-*"),
    "refinement": (
        lambda root: whole(
            root, refinement=(RefinementRecipe("block_distillation", {"epochs": 1}),)
        ),
        "refine*",
    ),
    "sequential refinement": (
        lambda root: whole(root, refinement=(RefinementRecipe("svd_llm_update"),)),
        "refine*",
    ),
    "pruning": (selection, "selection-*"),
    "factors in files": (streamed, "streamed-*/factors/*"),
    "summary of a streamed calibration": (streamed, "streamed-*/*.json"),
    "row": (rows, "row-*"),
    "dense row": (rows, "dense-*"),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", FINISHED)
def test_a_finished_result_is_made_again(tmp_path, kind):
    begin, pattern = FINISHED[kind]
    work, place, source = begin(tmp_path), tmp_path / "kept", random.Random(kind)
    expected = _undisturbed(work, place)
    assert not any(path.suffix == ".parts" for path in place.iterdir())
    for _ in range(2):
        files = sorted(path for path in place.glob(pattern) if path.is_file())
        assert files, f"none of {sorted(path.name for path in place.iterdir())}"
        flip_bit(source.choice(files), source)
        with pytest.warns(UserWarning, match="again"):
            _same(work(place), expected)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _same(work(place), expected)
    assert not [str(each.message) for each in told if "again" in str(each.message)]


class Stopped(Exception):
    pass


@contextmanager
def stopped(patch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> Iterator[None]:
    """Raise at the call after so many of a function, everything being stored at once."""
    original, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        if calls[0] == after:
            raise Stopped
        calls[0] += 1
        return original(*arguments, **options)

    with patch.context() as inner:
        inner.setattr(snapshots, "SECONDS_BETWEEN_SAVES", -1.0)
        inner.setattr(owner, name, counted)
        with pytest.raises(Stopped):
            yield


AVERAGED = {"hessian_averaging": HessianAveragingRecipe(data_fraction=0.5)}
MEASURED = {"probe": ProbeRecipe(tokens=24, joint_tokens=24)}
UNFINISHED: dict[str, tuple[Callable[[Path], Work], tuple[Any, str, int], str]] = {
    "sums": (whole, (in_memory, "run_batch", 2), "*.parts/sums*"),
    "layers": (whole, (solver, "decompose_layer", 3), "decomposition-*.parts/0*"),
    "layers along the path": (
        lambda root: whole(root, **AVERAGED),
        (solver, "decompose_layer", 3),
        "path-*.parts/0*",
    ),
    "figures": (
        lambda root: whole(root, **MEASURED),
        (probe.Probe, "divergence", 2),
        "decomposition-*.parts/*.json",
    ),
    "training state": (
        lambda root: whole(
            root, refinement=(RefinementRecipe("distillation", {"tokens": 500}),)
        ),
        (loop.Trainer, "step", 2),
        "*.parts/state",
    ),
    "pruning state": (selection, (prune._Run, "_prune", 1), "*.parts/state"),
    "journal": (streamed, (BlockwiseWalk, "_unit", 2), "*.parts/done.json"),
    "activations": (streamed, (BlockwiseWalk, "_unit", 2), "*.parts/activations/*-00002-*"),
    "statistics of a block": (streamed, (LayerFiles, "save", 0), "*.parts/statistics/*"),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", UNFINISHED)
def test_a_snapshot_is_not_used(tmp_path, monkeypatch, kind):
    begin, (owner, name, after), pattern = UNFINISHED[kind]
    work, source = begin(tmp_path), random.Random(kind)
    expected = _undisturbed(work, tmp_path / "calm")
    place = tmp_path / "kept"
    with stopped(monkeypatch, owner, name, after):
        work(place)
    files = sorted(place.glob(pattern))
    assert files, f"none of {sorted(str(path) for path in place.rglob('*'))}"
    for file in files:
        flip_bit(file, source)
    with pytest.warns(UserWarning, match="again"):
        _same(work(place), expected)


@pytest.mark.slow
def test_statistics_that_are_damaged_while_they_are_used_are_one_line(tmp_path, monkeypatch):
    """The run that finds them has read the others: the next one calibrates again."""
    work = streamed(tmp_path)
    expected = _undisturbed(work, tmp_path / "calm")
    drop, source = Parts.drop, random.Random(0)

    def damaging(parts: Parts, name: str) -> None:
        drop(parts, name)
        for file in parts.directory.glob("*.safetensors"):
            flip_bit(file, source)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "drop", damaging)
        with pytest.raises(Exception, match="delete it and run again"):
            work(tmp_path / "kept")
    with pytest.warns(UserWarning, match="again"):
        _same(work(tmp_path / "kept"), expected)


def test_times_of_layers_are_measured_again(tmp_path, monkeypatch):
    measured = LayerTimes(2e-6, (1, 4), (1e-6, 3e-6))
    monkeypatch.setattr(latency_table, "layer_times", lambda *given: measured)
    given = [(8, 8)], "lowrank", TimingSpec(torch.device("cpu"), torch.float32, 1)
    context, source = RunContext(Cache(tmp_path)), random.Random(0)
    expected = latency_table.time_shapes(*given, context)
    [file] = tmp_path.glob("times-*")
    flip_bit(file, source)
    with pytest.warns(UserWarning, match="making the times again"):
        assert latency_table.time_shapes(*given, context) == expected


def _undisturbed(work: Work, place: Path) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work(place)


def _same(found: Result, expected: Result) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
