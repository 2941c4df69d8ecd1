"""The text of the command line: asked for, mixed, and in packed rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spectrim.cli.options import OPTIONS, check_text, recipe_of
from spectrim.errors import InputError
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe, TaskRecipe
from tests.cli.conftest import SMALL, Cli


def given(**values: Any) -> dict[str, Any]:
    return {**dict.fromkeys(OPTIONS), "recipe": "fast", **values}


@pytest.mark.parametrize("command", ["compress", "plan", "explore"])
def test_text_is_asked_for(cli: Cli, shelf: Path, command: str) -> None:
    output = ("-o", "out") if command != "explore" else ()
    line = cli(command, shelf / "model", *output, *SMALL).failed_with_one_line()
    assert line.startswith("no calibration text; give --data")


def test_not_for_bundled_models_and_tasks() -> None:
    check_text(Recipe(), "reference")
    check_text(Recipe(task=TaskRecipe(data="a.jsonl")), "gpt2")
    check_text(Recipe(calibration=CalibrationRecipe(data="python")), "gpt2")
    with pytest.raises(InputError, match="no calibration text"):
        check_text(Recipe(), "gpt2")


def test_several_texts_are_one_spec() -> None:
    recipe = recipe_of(given(data=["a.txt@0.7", "b.jsonl:q@0.3"]))
    assert recipe.calibration.data == "a.txt@0.7 + b.jsonl:q@0.3"


def test_rows_by_option() -> None:
    assert recipe_of(given(rows="packed")).calibration.rows == "packed"
    assert recipe_of(given()).calibration.rows == "prefixed"


def test_evaluate_takes_both(cli: Cli, shelf: Path) -> None:
    text = shelf / "text.txt"
    rows = ("--rows", "packed", "--length", "24", "--tokens", "400", "--json")
    assert cli("evaluate", shelf / "model", "--data", text, "--data", text, *rows).code == 0
