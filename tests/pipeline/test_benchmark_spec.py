"""Recipes by short names and from files."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spectrim.errors import InputError
from spectrim.pipeline.benchmark import named_recipes
from spectrim.pipeline.presets import PAPERS, PRESETS
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
)

BASE = Recipe(
    calibration=CalibrationRecipe(data="text.txt", sequences=8),
    method_options={"damping": 0.25},
    probe=ProbeRecipe(per_layer=False),
)


def test_missing_parts_are_the_bases():
    found = named_recipes(["obd_bias", "asvd/uniform", "obd/uniform/lowrank"], BASE)
    assert found == {
        "obd_bias/loss_optimal/pivoted": BASE.with_changes(
            method="obd_bias", method_options={}
        ),
        "asvd/uniform/pivoted": BASE.with_changes(
            method="asvd", method_options={}, allocation="uniform"
        ),
        "obd/uniform/lowrank": BASE.with_changes(allocation="uniform", layer="lowrank"),
    }


def test_the_name_of_a_paper_is_its_published_combination():
    base = BASE.with_changes(layer="pivoted", budget=0.6)
    found = named_recipes([*PAPERS, "default"], base)
    assert list(found) == [*PAPERS, "default"]
    parts = {n: (r.method, r.allocation, r.layer) for n, r in found.items()}
    assert parts["svd_llm"] == ("svd_llm", "uniform", "lowrank")
    assert parts["d_rank"] == ("svd_llm", "d_rank", "lowrank")
    assert parts["welore"] == ("svd", "welore", "lowrank")
    assert parts["zs_svd"] == ("svd_llm", "zs_svd", "lowrank")
    assert parts["cospadi"] == ("svd_llm", "uniform", "sparse_dictionary")
    assert parts["default"] == ("obd", "loss_optimal", "pivoted")
    assert all((r.calibration, r.budget) == (base.calibration, 0.6) for r in found.values())


def test_refinements_in_order():
    [(name, recipe)] = named_recipes(["obd+block_distillation+distillation"], BASE).items()
    assert name == "obd/loss_optimal/pivoted+block_distillation+distillation"
    assert [step.name for step in recipe.refinement] == ["block_distillation", "distillation"]
    assert recipe.method_options == BASE.method_options


def test_a_preset_keeps_the_bases_tokens_and_budget():
    found = named_recipes(["fast", "default+block_distillation"], BASE.with_changes(budget=0.5))
    own = {"calibration": BASE.calibration, "budget": 0.5}
    assert found["fast"] == PRESETS["fast"].with_changes(**own)
    assert found["default+block_distillation"].probe == ProbeRecipe()
    assert [step.name for step in found["default+block_distillation"].refinement] == [
        "block_distillation"
    ]


def test_a_recipe_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(Recipe(method="svd", budget=0.3).to_yaml())
    found = named_recipes([str(file)], BASE)
    own = {"calibration": BASE.calibration}
    assert found == {"mine": Recipe(method="svd").with_changes(**own)}


def test_a_file_of_named_recipes_changes_single_fields(tmp_path):
    file = tmp_path / "several.yaml"
    entries = {
        "no path": {"hessian_averaging": {"weight": 0.0}},
        "sampled": {"calibration": {"labels": "sampled"}, "method": "svd"},
    }
    file.write_text(yaml.safe_dump(entries))
    found = named_recipes([str(file), "obd"], BASE)
    assert list(found) == ["no path", "sampled", "obd/loss_optimal/pivoted"]
    assert found["no path"] == BASE.with_changes(
        hessian_averaging=HessianAveragingRecipe(weight=0.0)
    )
    sampled = found["sampled"]
    assert (sampled.calibration.labels, sampled.calibration.data) == ("sampled", "text.txt")
    assert (sampled.method, sampled.method_options) == ("svd", {})


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no method is named"),
        (["obd", "obd/loss_optimal"], "is named twice"),
        (["obd/"], "expected METHOD"),
        (["/uniform"], "expected METHOD"),
        (["obd/uniform/lowrank/more"], "expected METHOD"),
        (["nope"], "unknown method or preset 'nope'; available: "),
        (["svdllm"], r"'svdllm' \(did you mean 'svd_llm'\?\)"),
        (["bsi_published"], "is now named 'bsi'"),
        (["obd/heavy_tail"], "allocation 'heavy_tail' is now named 'welore'"),
        (["obd/nope"], "unknown allocation 'nope'; available: "),
        (["obd/uniform/nope"], "unknown layer 'nope'; available: "),
        (["obd+nope"], "unknown refinement 'nope'; available: "),
        (["obd+"], "unknown refinement ''"),
        (["none.yaml"], "no such file"),
    ],
)
def test_wrong_names(specs, message):
    with pytest.raises(InputError, match=message):
        named_recipes(specs, BASE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a recipe"),
        ("- svd", "must hold a recipe"),
        ("mine: svd", "mine must hold a mapping"),
        ("mine: {budget: 0.5}", "come from --budgets"),
        ("mine: {colour: red}", "mine: colour: "),
        ("method: nope", "unknown method 'nope'"),
        ("method: svd\nmine: {}", "mine: "),
        ("a: [", "cannot be read"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    file = tmp_path / "recipes.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        named_recipes([str(file)], BASE)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_is_a_recipe_or_one_error(text):
    try:
        found = named_recipes([text], BASE)
    except InputError:
        return
    assert all(isinstance(recipe, Recipe) for recipe in found.values())
