"""Times of layers: measured once, kept, and told where they are bad."""

from __future__ import annotations

import pytest
import torch

from spectrim.allocation import LayerTimes
from spectrim.errors import InputError
from spectrim.evaluation.speed.layer_times import TimingSpec, layer_times
from spectrim.pipeline import latency_table as latency_table_module
from spectrim.pipeline.latency_table import latency_table, slow_layers
from spectrim.pipeline.recipe import LatencyRecipe
from spectrim.planning import make_plan
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.planning.test_latency import recipe
from tests.planning.test_planner import SHAPES, decomposition

PLACE = TimingSpec(torch.device("cpu"), torch.float32, 1)


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_a_layer_is_timed_dense_and_at_some_ranks(kind):
    times = layer_times((96, 64), kind, PLACE)
    assert times.dense > 0
    assert len(times.ranks) == len(times.seconds) == 5
    assert list(times.ranks) == sorted(times.ranks)
    assert all(seconds > 0 for seconds in times.seconds)


def test_times_are_kept_in_the_workspace(tmp_path, monkeypatch):
    given = recipe(latency=LatencyRecipe(tokens=2))
    first = latency_table(decomposition(), given, RunContext(Cache(tmp_path)))
    assert {shape for shape, _ in first.times} == set(SHAPES.values())
    monkeypatch.setattr(latency_table_module, "layer_times", None)
    assert latency_table(decomposition(), given, RunContext(Cache(tmp_path))) == first


def test_slow_layers_are_named_with_the_reason(monkeypatch):
    plan = make_plan(decomposition(), recipe(budget=0.7).planning)

    def measured(shape, kind, place):
        slow = shape == SHAPES["d"]
        return LayerTimes(2e-6, (1, 8), (3e-6, 4e-6) if slow else (1e-6, 1e-6))

    monkeypatch.setattr(latency_table_module, "layer_times", measured)
    text, prompt = slow_layers(plan, recipe())
    assert "for 1 token (worst" in text
    assert "for 128 tokens (worst" in prompt
    assert text.startswith(f"1 of {len(plan.ranks)} factored layers are slower")
    assert "worst d, 24 x 24, rank" in text
    assert "against 2.0 us" in text
    monkeypatch.setattr(
        latency_table_module, "layer_times", lambda *_: LayerTimes(2e-6, (1,), (1e-6,))
    )
    assert list(slow_layers(plan, recipe())) == []


def test_layers_that_are_slow_until_they_are_fused_are_named(monkeypatch):
    """As pivoted ones of keep .8 are for prompts."""
    plan = make_plan(decomposition(), recipe(budget=0.7, layer="pivoted").planning)

    def measured(shape, kind, place):
        slow = place.tokens > 1 and not place.fused
        return LayerTimes(2e-6, (1,), (3e-6,) if slow else (1e-6,))

    monkeypatch.setattr(latency_table_module, "layer_times", measured)
    [text] = slow_layers(plan, recipe())
    assert "are slower here than dense ones for 128 tokens unless the model is fused" in text
    assert text.endswith("call spectrim.fuse(model) after loading")


def test_kinds_that_are_not_timed_say_so_or_are_left_alone():
    given = recipe(layer="sparse_dictionary")
    with pytest.raises(InputError, match="lowrank or pivoted"):
        latency_table(decomposition(), given)
    assert list(slow_layers(make_plan(decomposition(), given.planning), given)) == []
