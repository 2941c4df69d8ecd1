"""Fewer tokens than channels: a warning with the numbers, and the budget is spent."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from spectrim.errors import InputError, NumericalWarning
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Plan, make_plan
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer


def recipe_for(text: Path, sequences: int, length: int) -> Recipe:
    recipe = Recipe(budget=0.8)
    data = replace(recipe.calibration, data=str(text), sequences=sequences, length=length)
    return recipe.with_changes(calibration=data)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(" ".join(f"word{n} and {n * n}" for n in range(4_000)), encoding="utf-8")
    return path


def plan_for(text: Path, sequences: int, length: int) -> Plan:
    model, recipe = tiny_llama(), recipe_for(text, sequences, length)
    calibration = calibrate(model, tiny_tokenizer(), recipe)
    return make_plan(decompose(model, calibration, recipe), recipe.planning)


def test_warning_has_the_numbers_and_the_budget_is_spent(text: Path) -> None:
    with pytest.warns(NumericalWarning, match=r"fewer than 2 tokens per channel .*: 8 tokens"):
        plan = plan_for(text, 1, 8)
    assert plan.kept == pytest.approx(0.8, abs=0.02)
    assert plan.predicted_loss > 0


def test_enough_tokens_warn_of_nothing(text: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NumericalWarning)
        plan_for(text, 64, 16)


def test_rows_longer_than_the_model_reads(text: Path) -> None:
    model = tiny_gpt2()
    positions = model.config.max_position_embeddings
    with pytest.raises(InputError, match=f"the model reads at most {positions}; give --length"):
        calibrate(model, tiny_tokenizer(), recipe_for(text, 1, positions + 1))
