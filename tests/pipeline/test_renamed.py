"""Old names of recipes and of the command line end in one line that states the new ones."""

from __future__ import annotations

import pytest
import yaml

from spectrim.errors import InputError
from spectrim.pipeline.recipe import Recipe, recipe_from
from spectrim.pipeline.renamed import FIELDS, FORMAT, VALUES, WORDS, check_field, renamed_option
from spectrim.pruning import PruningOptions


def _nested(path: str, value: object) -> dict[str, object]:
    *parents, last = path.split(".")
    values: dict[str, object] = {last: value}
    for parent in reversed(parents):
        values = {parent: [values] if parent == "refinement" else values}
    return values


@pytest.mark.parametrize(("old", "new"), FIELDS.items())
def test_an_old_field_names_the_new_one(old, new):
    with pytest.raises(InputError, match=rf"old\.yaml: '{old}' is now named '[\w.]*{new}'"):
        recipe_from(_nested(old, 1), "old.yaml")


@pytest.mark.parametrize(("old", "new"), VALUES.items())
def test_an_old_value_names_the_new_one(old, new):
    with pytest.raises(InputError, match=f"'{old[1]}' is now named '{new}'"):
        recipe_from(_nested(*old), "old.yaml")


def test_parents_and_field_are_renamed_at_once():
    with pytest.raises(
        InputError, match=r"'selection\.events' is now named 'pruning\.prune_steps'"
    ):
        check_field("selection.events", "--set")


def test_what_is_written_now_is_read():
    recipe = Recipe(pruning=PruningOptions(), budget=0.3)
    assert recipe_from(recipe.to_dict(), "new.yaml") == recipe
    written = yaml.safe_load(recipe.to_yaml())
    assert written["format"] == FORMAT
    assert recipe_from(written, "new.yaml") == recipe


def test_a_recipe_of_the_first_format_needs_no_word():
    assert recipe_from({"format": 1, "budget": 0.3}, "old.yaml") == Recipe(budget=0.3)


@pytest.mark.parametrize("stated", [FORMAT + 1, 0, "2", True, None])
def test_other_formats_are_refused(stated):
    with pytest.raises(InputError, match=rf"x\.yaml: format {stated!r} is none that"):
        recipe_from({"format": stated, "budget": 0.3}, "x.yaml")


def test_words_of_the_command_line():
    for old, new in WORDS.items():
        assert new not in WORDS
        quoted = old if old.startswith("--") else f"'{old}'"
        assert (
            renamed_option(f"No such option or command: {quoted}")
            == f"{old} is now named {new}"
        )
    assert renamed_option("No such option: --nothing") is None
