"""`--set field=value`: parts that were left out, and options that belong to another name."""

from __future__ import annotations

import pytest

from spectrim.cli.options import OPTIONS, recipe_of
from spectrim.errors import InputError


def recipe(preset: str, *assignments: str):
    return recipe_of(dict.fromkeys(OPTIONS) | {"recipe": preset, "set": list(assignments)})


def test_an_option_inside_a_part_that_was_left_out():
    made = recipe("default", "embeddings.options.smoothing=2.0").embeddings
    assert made.options == {"smoothing": 2.0}
    made = recipe("default", "embeddings.method=obd", "embeddings.options.smoothing=2.0")
    assert made.embeddings.options == {"smoothing": 2.0}


def test_another_name_comes_without_the_options_of_the_first():
    assert recipe("task").pruning.importance_options == {"temperature": 1.0}
    assert recipe("task", "pruning.importance=magnitude").pruning.importance_options == {}
    same = recipe("task", "pruning.importance=fisher").pruning
    assert same.importance_options == {"temperature": 1.0}


def test_options_that_are_given_before_the_name_stay():
    given = ("pruning.importance_options.temperature=4", "pruning.importance=kronecker")
    assert recipe("task", *given).pruning.importance_options == {"temperature": 4}


@pytest.mark.parametrize("wrong", ["calibration.nope.x=1", "nope.x=1", "pruning.nope.x=1"])
def test_a_field_that_does_not_exist(wrong):
    with pytest.raises(InputError, match="nope"):
        recipe("default", wrong)


def test_an_optimizer_is_that_of_all_refinements_that_have_one():
    given = dict.fromkeys(OPTIONS) | {"recipe": "best", "optimizer": "muon"}
    steps = recipe_of(given | {"learning_rate": 0.01}).refinement
    assert [step.name for step in steps] == ["block_distillation", "distillation"]
    assert all(step.options["optimizer"] == "muon" for step in steps)
    assert all(step.options["learning_rate"] == 0.01 for step in steps)
    assert steps[0].options["out_metric"] == "gradient", "the rest is the recipe's"
    given |= {"refine": ["finetune", "distillation"]}
    steps = recipe_of(given).refinement
    assert [step.options for step in steps] == [{}, {"optimizer": "muon"}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "muon"}, "no refinement of this recipe has one"),
        ({"optimizer": "muom", "refine": ["distillation"]}, "did you mean 'muon'"),
        ({"optimizer": "sven", "refine": ["distillation"]}, "residual of every example"),
        ({"learning_rate": -1.0, "refine": ["distillation"]}, "have to be positive"),
    ],
)
def test_optimizers_that_cannot_be_used(given, said):
    with pytest.raises(InputError, match=said):
        recipe_of(dict.fromkeys(OPTIONS) | {"recipe": "default"} | given)
