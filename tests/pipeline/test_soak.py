"""Many cycles of compress, save, load and evaluate in one process: nothing grows."""

from __future__ import annotations

import gc
import os
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import spectrim
from spectrim import checkpoint
from spectrim.data import BlockSettings
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.memory import resident_bytes, trim_memory
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.slow

CYCLES = int(os.environ.get("SPECTRIM_SOAK", "24"))
"""SPECTRIM_SOAK=200 for the long run."""
WARM = 8
GROWTH_PER_CYCLE = 2**18
"""Bytes; one leaked tiny model has 2^17, its statistics and factors several times that."""


def held() -> tuple[int, int]:
    """Bytes in memory, and open files."""
    gc.collect()
    trim_memory()
    return resident_bytes(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_nothing_grows(tmp_path):
    text = str(text_file(tmp_path / "text.txt"))
    cycle = partial(one_cycle, tiny_llama(), small_recipe(Path(text)), tmp_path / "out")
    for _ in range(WARM):
        cycle()
    memory, files = held()
    for _ in range(CYCLES):
        cycle()
    more, still_open = held()
    print(f"{CYCLES} cycles: {(more - memory) / 2**20:.1f} MiB, {still_open - files} files")
    assert still_open <= files
    assert more - memory <= CYCLES * GROWTH_PER_CYCLE


def one_cycle(model: PreTrainedModel, recipe: Recipe, output: Path) -> None:
    tokenizer = tiny_tokenizer()
    decomposition = spectrim.factorize(model, tokenizer, recipe)
    smaller = spectrim.replace_layers(
        model, decomposition, spectrim.plan(decomposition, recipe)
    )
    config = smaller.config.quantization_config
    checkpoint.save_compressed(
        smaller, tokenizer, output, config, checkpoint.SaveOptions(overwrite=True)
    )
    loaded, _ = spectrim.load(output)
    settings = BlockSettings(length=24, max_tokens=96)
    spectrim.evaluate(loaded, tokenizer, recipe.calibration.data, settings)
