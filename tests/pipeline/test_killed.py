"""Killed at any moment (`kill -9`) and run again: the same result, to the bit."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim import checkpoint
from spectrim.calibration import in_memory
from spectrim.checkpoint.save_sharded import open_streamed, save_streamed
from spectrim.data.tasks import write_task
from spectrim.models.offload import StreamSizes
from spectrim.pipeline.calibrate import calibrate as run_calibrate
from spectrim.pipeline.compress import CompressOptions, compress
from spectrim.pipeline.plan import factorize as run_factorize
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.presets import PRESETS
from spectrim.pipeline.prune_for_task import prune_for_task
from spectrim.pipeline.recipe import (
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
    RefinementRecipe,
    TaskRecipe,
)
from spectrim.pipeline.refine import refine as run_refine
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import solver
from spectrim.planning.probe import Probe
from spectrim.pruning import prune as selection_run
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.runtime.files import write_tensors
from spectrim.training import loop
from tests.pipeline.killing import Stage, Work, killed
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SPECTRIM_KILLS", "3"))
"""SPECTRIM_KILLS=20 for the long run."""
SIZES = StreamSizes(batch_rows=2, logits_rows=1, activation_bytes=0)
TASK = [(f"the number after {n} is ", str(n + 1)) for n in range(40)]


def recipe_in(root: Path, **changes) -> Recipe:
    """Sequences one by one, so that there are several batches; everything stored at once."""
    snapshots.SECONDS_BETWEEN_SAVES = -1.0
    recipe = small_recipe(text_file(root / "text.txt"), **changes)
    given = replace(recipe.calibration, sequences=6, tokens_per_batch=24)
    return recipe.with_changes(calibration=given)


def progress(place: Path) -> RunContext:
    return RunContext(Cache(place))


def calibrate(root: Path, **changes) -> Work:
    recipe, model = recipe_in(root, **changes), tiny_llama().double()
    return lambda place: run_calibrate(
        model, tiny_tokenizer(), recipe, RunContext(Cache(place))
    )


def factorize(root: Path, **changes) -> Work:
    recipe, model = recipe_in(root, **changes), tiny_llama().double()
    return lambda place: run_factorize(
        model, tiny_tokenizer(), recipe, RunContext(Cache(place))
    )


SHORT = {
    "hessian_averaging": HessianAveragingRecipe(weight=0),
    "probe": ProbeRecipe(per_layer=False, joint=False),
}


def compressed(root: Path, place: Path) -> None:
    """The checkpoint that refinements start from."""
    recipe, model = recipe_in(root, **SHORT), tiny_llama()
    decomposition = run_factorize(model, tiny_tokenizer(), recipe)
    smaller = replace_layers(model, decomposition, run_plan(decomposition, recipe))
    config = smaller.config.quantization_config
    checkpoint.save_compressed(smaller, None, place / "start", config, checkpoint.SaveOptions())


def refine(root: Path, name: str, options: dict[str, int]) -> Work:
    step = RefinementRecipe(name, options)
    recipe, model = recipe_in(root, refinement=(step,)), tiny_llama()
    smaller, _ = checkpoint.load(root / "before" / "start")

    def work(place: Path) -> None:
        found = run_refine(model, smaller, tiny_tokenizer(), recipe, progress(place))
        write_tensors(place / "refined.safetensors", dict(found.named_parameters()), {})

    return work


def select(root: Path, preset: str = "task", **more: Any) -> Work:
    recipe_in(root)
    write_task(lambda: iter(TASK), root / "task.jsonl")
    recipe = PRESETS[preset]
    assert recipe.pruning is not None
    quick = {"steps": 8, "prune_steps": 3, "batch_size": 4, "scoring_examples": 8}
    recipe = recipe.with_changes(
        budget=0.4,
        calibration=replace(recipe.calibration, sequences=6, tokens_per_batch=64),
        pruning=replace(recipe.pruning, **quick, **more),
        task=TaskRecipe(data=str(root / "task.jsonl")),
    )
    model = tiny_llama()
    return lambda place: prune_for_task(model, tiny_tokenizer(), recipe, progress(place))


def save(root: Path) -> Work:
    """Over an earlier output."""
    model, _ = checkpoint.load(root / "before" / "start")
    config, options = model.config.quantization_config, checkpoint.SaveOptions(overwrite=True)
    return lambda place: checkpoint.save_compressed(
        model, tiny_tokenizer(), place / "out", config, options
    )


def stream(root: Path) -> Work:
    """Calibrate, decompose, plan and save, in float64."""
    recipe = recipe_in(root)
    tiny_llama().double().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    opened = open_streamed(root / "model", torch.float64)
    opened.streamed.sizes = SIZES

    def work(place: Path) -> None:
        given = opened.streamed, opened.tokenizer, recipe, progress(place)
        result = compress(*given, options=CompressOptions(dtype=torch.float64))
        options = checkpoint.SaveOptions(overwrite=True)
        save_streamed(result.model, result.parts, opened.tokenizer, place / "out", options)

    return work


def begun(root: Path, place: Path) -> None:
    """Calibrated, for what comes after."""
    calibrate(root, **SHORT)(place)


BATCH, LAYER = (in_memory, "run_batch"), (solver, "decompose_layer")
CURVE, STEP = (Probe, "divergence"), (loop.Trainer, "step")
PRUNE = (selection_run._Run, "_prune")
NO_PATH = {"hessian_averaging": HessianAveragingRecipe(weight=0)}
STAGES = {
    "calibration along the path": Stage(calibrate, None, (BATCH, LAYER)),
    "decomposition": Stage(partial(factorize, **SHORT), begun, (BATCH, LAYER)),
    "measured curves": Stage(partial(factorize, **NO_PATH), begun, (BATCH, LAYER, CURVE)),
    "block_distillation": Stage(
        partial(refine, name="block_distillation", options={"epochs": 3}), compressed, (STEP,)
    ),
    "distillation": Stage(
        partial(refine, name="distillation", options={"tokens": 1000}), compressed, (STEP,)
    ),
    "selection": Stage(select, None, (BATCH, STEP, PRUNE)),
    "selection by bsi": Stage(
        partial(select, preset="bsi", importance_options={"probes": 1}),
        None,
        (BATCH, STEP, PRUNE),
    ),
    "save": Stage(save, compressed, outputs=("out",)),
    "streaming": Stage(stream, None, outputs=("out",)),
}


@pytest.fixture(scope="module")
def apart() -> Iterator[ProcessPoolExecutor]:
    """A new process: one that ran other tests has threads, which no fork carries over."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as workers:
        yield workers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_killed_at_random_moments(apart, tmp_path, name):
    undisturbed, most = apart.submit(run_stage, name, tmp_path / "stage").result()
    assert most <= undisturbed, "a kill costs more than one unit of work"


def run_stage(name: str, root: Path) -> tuple[int, int]:
    return killed(STAGES[name], root, KILLS)
