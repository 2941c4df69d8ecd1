"""All sizes by one run: the recipe, the plans inside it, and what a run refuses at once."""

from __future__ import annotations

import pytest
import torch

import spectrim
from spectrim.allocation import LatencyTable, LayerTimes
from spectrim.checkpoint import sizes_of
from spectrim.errors import InputError
from spectrim.pipeline import elastic_size
from spectrim.pipeline.budgets import ElasticRecipe, parse_range
from spectrim.pipeline.compress import CompressOptions, compress, prepare_recipe
from spectrim.pipeline.elastic import plan_elastic
from spectrim.pipeline.elastic_size import budget_for_latency
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.recipe import Recipe, recipe_from
from spectrim.planning import make_plan
from spectrim.planning.nested import nested_plan
from tests.checkpoint.compressing import logits
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.tolerances import CUT_LOGITS_RELATIVE

RANGE = ElasticRecipe(0.4, 0.9)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("elastic") / "text.txt")


@pytest.fixture(scope="module")
def recipe(text) -> Recipe:
    return small_recipe(text, elastic=RANGE, rank_multiple=1)


@pytest.fixture(scope="module")
def result(recipe):
    return compress(tiny_llama(), tiny_tokenizer(), recipe)


def test_the_result_is_planned_at_the_largest_size(result, recipe):
    assert result.recipe.budget == RANGE.largest
    assert not result.recipe.averages_hessian
    assert result.plan.budget == RANGE.largest
    assert result.plan.kept <= RANGE.largest
    assert result.plan.provenance["elastic"] == [0.4, 0.9]


def test_sizes_are_predicted_to_be_as_good_as_free_plans(result):
    """The predicted loss of a nested plan is at most that of a free plan 3 % smaller."""
    sizes = sizes_of(result.model.config.quantization_config.elastic)
    settings = result.recipe.planning
    for budget in (0.45, 0.6, 0.8):
        nested = nested_plan(result.decomposition, settings, sizes, budget)
        free = make_plan(result.decomposition, settings.at_budget(budget))
        smaller = make_plan(result.decomposition, settings.at_budget(budget - 0.03))
        assert free.predicted_loss <= nested.predicted_loss * (1 + 1e-9)
        assert nested.predicted_loss <= smaller.predicted_loss


def test_it_is_saved_and_cut(result, tmp_path):
    out = spectrim.save(result.model, tiny_tokenizer(), tmp_path / "out")
    for budget in (0.4, 0.66, 0.9):
        model, _ = spectrim.load(out, budget=budget)
        expected = logits(spectrim.resize(result.model, budget))
        error = (logits(model) - expected).abs().max() / expected.abs().max()
        assert error <= CUT_LOGITS_RELATIVE


def test_a_time_chooses_the_size(result, tmp_path, monkeypatch):
    out = spectrim.save(result.model, tiny_tokenizer(), tmp_path / "out")

    def proportional(shapes, kind, place, context):
        times = {}
        for shape in shapes:
            ranks = tuple(range(1, min(shape) + 1))
            costs = tuple(float(r * (sum(shape) - r)) for r in ranks)
            times[shape, kind] = LayerTimes(float(shape[0] * shape[1]), ranks, costs)
        return LatencyTable(times, place.tokens)

    monkeypatch.setattr(elastic_size, "time_shapes", proportional)
    assert 0.59 <= budget_for_latency(str(out), 0.6) <= 0.61
    with pytest.raises(InputError, match="smallest size"):
        budget_for_latency(str(out), 0.2)
    with pytest.raises(InputError, match="fraction of the dense time"):
        budget_for_latency(str(out), 1.2)


def test_a_method_whose_bias_depends_on_the_rank_is_refused(text):
    with pytest.raises(InputError, match="biases depend on the rank"):
        small_recipe(text, method="obd_bias", elastic=RANGE)
    plain = small_recipe(text, method="obd_bias")
    decomposition = factorize(tiny_llama(), tiny_tokenizer(), plain)
    asked = small_recipe(text, elastic=RANGE)
    with pytest.raises(InputError, match="depends on its rank"):
        plan_elastic(decomposition, asked)


def test_a_target_loss_is_refused_before_the_work(recipe):
    with pytest.raises(InputError, match="choose one by its loss when loading"):
        prepare_recipe(recipe, CompressOptions(target_loss=0.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.4", "expected the smallest"),
        ("a..b", "expected the smallest"),
        ("", "like 0.4..0.9"),
    ],
)
def test_ranges_that_cannot_be_read(text, message):
    with pytest.raises(InputError, match=message):
        parse_range(text)


@pytest.mark.parametrize("low_high", [(0.9, 0.4), (0.5, 0.5), (0, 0.5), (0.5, 1.1)])
def test_ranges_out_of_order_are_refused(low_high):
    low, high = low_high
    with pytest.raises(InputError, match="elastic"):
        recipe_from({"elastic": {"smallest": low, "largest": high}}, "options")


def test_a_range_is_read_as_written():
    assert parse_range("0.4..0.9") == {"smallest": 0.4, "largest": 0.9}
    assert parse_range(".25..1") == {"smallest": 0.25, "largest": 1.0}


def test_a_saved_dtype_is_kept(recipe):
    half = compress(tiny_llama(), tiny_tokenizer(), recipe.with_changes(save_dtype="bfloat16"))
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
