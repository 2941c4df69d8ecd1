"""A plan edited by hand is refused or followed with the figures that its ranks give."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spectrim.errors import InputError
from spectrim.pipeline.compress import CompressOptions, compress, prepare_recipe
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.presets import load_recipe
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Plan, follow_plan, load_plan, make_plan, save_plan
from spectrim.planning.plan import LayerPlan
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    recipe = small_recipe(text_file(tmp_path_factory.mktemp("text") / "text.txt"))
    decomposition = factorize(tiny_llama(), tiny_tokenizer(), recipe)
    return recipe, decomposition, make_plan(decomposition, recipe.planning)


def with_ranks(plan: Plan, rank: int | None) -> Plan:
    layers = {name: replace(layer, rank=rank) for name, layer in plan.layers.items()}
    return replace(plan, layers=layers)


def test_a_plan_as_it_was_made_keeps_its_figures(case):
    recipe, decomposition, plan = case
    followed = follow_plan(plan, decomposition, recipe.planning)
    assert followed == replace(plan, kept=followed.kept)
    assert followed.kept == pytest.approx(plan.kept, abs=1e-12)


def test_edited_ranks_give_their_own_figures(case):
    recipe, decomposition, plan = case
    small = follow_plan(with_ranks(plan, 1), decomposition, recipe.planning)
    dense = follow_plan(with_ranks(plan, None), decomposition, recipe.planning)
    weights = sum(a * b for a, b in decomposition.shapes.values())
    stored = sum(a + b - 1 for a, b in decomposition.shapes.values())  # pivoted, rank 1
    assert small.kept == pytest.approx(stored / weights)
    assert small.budget == small.kept
    assert small.predicted_loss > plan.predicted_loss
    assert (dense.kept, dense.predicted_loss) == (1.0, 0.0)
    losses = [float(decomposition.curves[name][1]) for name in plan.layers]
    assert [layer.predicted_loss for layer in small.layers.values()] == losses


def test_the_result_states_what_it_followed(case):
    recipe, _, plan = case
    options = CompressOptions(plan=with_ranks(plan, 1))
    result = compress(tiny_llama(), tiny_tokenizer(), recipe, options=options)
    assert result.plan.kept < 0.2 < plan.kept
    assert result.recipe.budget == result.plan.kept
    stated = result.model.config.quantization_config.provenance["plan"]
    assert stated["kept"] == result.plan.kept


def test_a_plan_without_layers_is_refused():
    empty = Plan("svd", "uniform", "lowrank", 0.5, 0.5, None, {})
    with pytest.raises(InputError, match="no layers"):
        prepare_recipe(Recipe(), CompressOptions(plan=empty))


EDITS = {
    "rank: 7": ("rank: true", "expected a number, got true"),
    "budget: 0.8": ("budget: true", "expected a number"),
    "- 48": ("- true", "expected a number"),
    "method: obd\n": ("method: obd\nmethod: svd\n", "'method' is given twice"),
    "  b:\n": ("  a:\n", "'a' is given twice"),
}


@pytest.mark.parametrize("old", EDITS)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_edits_that_are_refused(old, suffix, tmp_path):
    layers = {"a": LayerPlan((32, 48), 7), "b": LayerPlan((32, 48))}
    file = tmp_path / f"plan{suffix}"
    save_plan(Plan("obd", "uniform", "lowrank", 0.8, 0.8, None, layers), file)
    new, message = EDITS[old]
    text = file.read_text()
    if suffix == ".json":
        text = text.replace("\n", "")
        old, new = (_as_json(part) for part in (old, new))
    else:
        text = text.replace("[32, 48]", "\n    - 32\n    - 48")
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_plan(file)


def _as_json(line: str) -> str:
    """The same lines of YAML as a piece of the JSON file."""
    if line.strip().startswith("-"):
        return line.replace("- 48", "   48").replace("- true", "   true")
    parts = [part.partition(":") for part in line.strip().splitlines()]
    pieces = []
    for key, _, value in parts:
        value = value.strip()
        quoted = f'"{value}"' if value.isalpha() and value != "true" else value
        pieces.append(f'"{key.strip()}": {quoted}')
    return ", ".join(pieces)


def test_keys_given_twice_in_a_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text("budget: 0.5\nbudget: 0.6\n")
    with pytest.raises(InputError, match="'budget' is given twice"):
        load_recipe(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize("method", ["obd", "obd_bias", "gfwsvd", "svd_llm"])
@pytest.mark.parametrize("damping", [-1e-3, float("inf"), float("nan")])
def test_damping_is_not_negative(method, damping):
    with pytest.raises(InputError, match="damping"):
        Recipe().with_changes(method=method, method_options={"damping": damping})
