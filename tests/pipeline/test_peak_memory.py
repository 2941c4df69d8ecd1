"""What a run in memory is said to take at most."""

from __future__ import annotations

import pytest

from spectrim.pipeline.peak_memory import LoadedParts, peak_in_memory
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe
from spectrim.runtime.memory import resident_bytes
from tests.tiny_models import TINY_MODELS


@pytest.mark.parametrize("name", ["llama", "gpt2", "tied"])
def test_it_is_more_than_the_process_and_grows_with_what_is_read(name):
    model = TINY_MODELS[name]()
    parts = LoadedParts(model)
    assert parts.total_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert parts.part_of(f"{parts.blocks[0]}.any") == parts.blocks[0]
    assert parts.part_of("lm_head") == "lm_head"

    def peak(**given: int) -> int:
        calibration = CalibrationRecipe(sequences=64, length=16, **given)
        return peak_in_memory(model, Recipe(calibration=calibration, budget=0.8))

    few, many = peak(tokens_per_batch=16), peak(tokens_per_batch=1024)
    assert resident_bytes() < few < many
