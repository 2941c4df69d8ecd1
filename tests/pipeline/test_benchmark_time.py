"""A table at equal time: plans within it whatever allocates, measured beside it."""

from __future__ import annotations

import pytest
import torch

from spectrim.allocation import LayerTimes
from spectrim.data import BlockSettings
from spectrim.evaluation.speed.layer_times import TimingSpec
from spectrim.models.targets import find_targets
from spectrim.pipeline import benchmark, latency_table
from spectrim.pipeline.benchmark import Bench, BenchSettings, bench, equal_time
from spectrim.pipeline.recipe import HessianAveragingRecipe, LatencyRecipe, ProbeRecipe, Recipe
from spectrim.planning import LayerPlan, Plan
from spectrim.report import bench_table
from spectrim.report.bench_plot import bench_svg, lines_of
from spectrim.runtime.cache import Cache
from spectrim.runtime.files import read_values
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_qwen2_bias, tiny_tokenizer

BUDGETS = (0.4, 0.3)
NANOSECOND = 1e-9


def by_weights(shape, kind, place) -> LayerTimes:
    """A nanosecond a weight, half of one where they are factored."""
    ranks = tuple(range(1, min(shape) + 1))
    seconds = tuple(NANOSECOND / 2 * rank * sum(shape) for rank in ranks)
    return LayerTimes(NANOSECOND * shape[0] * shape[1], ranks, seconds)


def as_planned(model, plan, place) -> float:
    return plan.provenance["latency"]["predicted"]


@pytest.fixture
def settings(tmp_path, monkeypatch) -> BenchSettings:
    monkeypatch.setattr(latency_table, "layer_times", by_weights)
    monkeypatch.setattr(equal_time, "measure_time", as_planned)
    text = text_file(tmp_path / "text.txt")
    return BenchSettings(
        texts=(str(text),),
        blocks=BlockSettings(length=24, max_tokens=200, keep_tail=True),
        rows=tmp_path / "rows",
        cache=Cache(tmp_path / "kept"),
    )


@pytest.fixture
def recipes(settings) -> dict[str, Recipe]:
    common = {
        "hessian_averaging": HessianAveragingRecipe(weight=0),
        "probe": ProbeRecipe(per_layer=False, joint=False),
        "layer": "lowrank",
        "latency": LatencyRecipe(),
        "rank_multiple": 1,
    }
    base = small_recipe(settings.texts[0], **common)
    return {
        "obd": base,
        "svd": base.with_changes(method="svd", allocation="uniform"),
    }


def made(recipes, settings, budgets=BUDGETS) -> Bench:
    return bench(tiny_llama(), tiny_tokenizer(), recipes, budgets, settings)


def test_rows_of_one_budget_take_equal_time(recipes, settings):
    found = made(recipes, settings)
    assert [row.error for row in found.rows] == [None] * 4
    for row in found.rows:
        assert 0.9 * row.budget < row.planned_time <= row.budget + 1e-4
        assert row.time == row.planned_time
        assert Recipe(**row.recipe).latency.budget == row.budget
        assert row.allowed_bytes is None
        assert not row.exceeds
    head, lines = bench_table.columns(found), bench_table.cells(found)
    assert [len(line) for line in lines] == [len(head)] * 5
    assert lines[1][head.index("time")] == f"{found.rows[0].time:.3f}"
    assert "fraction of the dense layers' time" in bench_table.markdown(found, "t")
    assert {x for x, _ in lines_of(found.rows)["svd"]} == {r.time for r in found.rows[2:]}
    assert "time of the compressed layers" in bench_svg(found.rows, "t")


def test_rows_are_those_of_one_machine(recipes, settings, monkeypatch):
    given = {"svd": recipes["svd"]}
    first = made(given, settings, BUDGETS[:1])
    [file] = settings.rows.glob("row-*")
    assert read_values(file)["time"] == first.rows[0].time
    assert made(given, settings, BUDGETS[:1]).made == 0
    here = latency_table.timing_spec(given["svd"])
    elsewhere = type(here)(here.device, torch.float64, here.tokens)
    monkeypatch.setattr(benchmark, "timing_spec", lambda recipe: elsewhere)
    assert made(given, settings, BUDGETS[:1]).made == 1


def test_a_time_that_no_ranks_meet_is_the_rows_error(recipes, settings):
    found = made(recipes, settings, (0.0001,))
    assert [row.time for row in found.rows] == [None, None]
    assert all("below the smallest possible" in row.error for row in found.rows)


@pytest.mark.slow
def test_a_plan_that_takes_longer_is_made_again(recipes, settings, monkeypatch):
    """Here everything takes a fifth longer than planned."""
    seen = []

    def slower(model, plan, place):
        seen.append(1.2 * plan.provenance["latency"]["predicted"])
        return seen[-1]

    monkeypatch.setattr(equal_time, "measure_time", slower)
    row, other = made(recipes, settings, BUDGETS[:1]).rows
    assert row.time <= 1.02 * row.budget
    assert row.time == pytest.approx(1.2 * row.planned_time)
    assert not row.exceeds
    assert seen[0] > 1.02 * row.budget
    assert len(seen) >= 4
    monkeypatch.setattr(equal_time, "measure_time", lambda *_: 0.5)
    other = made({"again": recipes["obd"].with_changes(method="svd")}, settings, BUDGETS[:1])
    assert other.rows[0].exceeds
    assert "| 0.500! |" in bench_table.markdown(other, "t")


def test_the_layers_that_were_planned_are_timed():
    model = tiny_qwen2_bias()
    shapes = {t.name: t.shape for t in find_targets(model)}
    ranks = dict.fromkeys(shapes, 4) | {next(iter(shapes)): None}
    layers = {name: LayerPlan(shapes[name], rank, 0.0, {}) for name, rank in ranks.items()}
    plan = Plan("svd", "uniform", "pivoted", 0.5, 0.5, None, layers, {}, {})
    place = TimingSpec(torch.device("cpu"), torch.float64, 3)
    assert equal_time.measure_time(model, plan, place) > 0
    found = {
        name: (dense, layer) for name, dense, layer in equal_time._layers(model, plan, place)
    }
    assert found.keys() == shapes.keys()
    for name, (dense, layer) in found.items():
        x = torch.zeros(1, shapes[name][1], dtype=torch.float64)
        assert layer(x).shape == dense(x).shape
        assert (layer is dense) == (ranks[name] is None)
        assert getattr(layer, "rank", None) == ranks[name]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
