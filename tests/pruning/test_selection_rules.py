from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrim.errors import InputError
from spectrim.layers import layer_class
from spectrim.pipeline.recipe import recipe_from
from spectrim.pruning import LayerCost, PruningOptions, select, stored_weights
from spectrim.pruning.options import kept_after
from tests.tolerances import LOSS_RELATIVE

RULES = ("global", "energy")
KINDS = ("lowrank", "pivoted")


def _costs(shapes: list[tuple[int, int]], kind: str = "lowrank", extra: int = 0):
    cost = layer_class(kind).cost
    return {
        f"layer{n}": LayerCost(partial(cost, *shape), shape[0] * shape[1], extra)
        for n, shape in enumerate(shapes)
    }


def _scores(shapes: list[tuple[int, int]], seed: int, low: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer{n}": low + torch.rand(min(shape), generator=generator, dtype=torch.float64)
        for n, shape in enumerate(shapes)
    }


shapes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@given(
    shapes=shapes, seed=st.integers(0, 99), budget=st.floats(0.01, 1.2), low=st.floats(-1, 0)
)
@settings(max_examples=60, deadline=None)
def test_what_is_kept_fits_and_is_the_best_of_each_layer(rule, kind, shapes, seed, budget, low):
    costs, scores = _costs(shapes, kind), _scores(shapes, seed, low)
    weights = int(budget * sum(cost.dense for cost in costs.values()))
    if sum(cost.of(1) for cost in costs.values()) > weights:
        with pytest.raises(InputError, match="raise"):
            select(scores, costs, weights, rule)
        return
    kept = select(scores, costs, weights, rule)
    counts = {name: len(indices) for name, indices in kept.items()}
    assert stored_weights(counts, costs) <= weights
    for name, indices in kept.items():
        assert 1 <= len(indices) <= len(scores[name])
        assert torch.equal(indices, indices.unique())
        gone = torch.ones_like(scores[name], dtype=torch.bool)
        gone[indices] = False
        if gone.any():
            assert scores[name][gone].max() <= scores[name][indices].min()


@given(shapes=shapes, seed=st.integers(0, 99), budget=st.floats(0.3, 0.9))
@settings(max_examples=40, deadline=None)
def test_the_global_rule_leaves_no_basis_out_that_fits(shapes, seed, budget):
    """Neither its own, nor one that is worth more per weight than one that stayed."""
    costs, scores = _costs(shapes), _scores(shapes, seed)
    weights = int(budget * sum(cost.dense for cost in costs.values()))
    if sum(cost.of(1) for cost in costs.values()) > weights:
        return
    kept = select(scores, costs, weights, "global")
    price = {n: scores[n] / costs[n].per_basis(len(scores[n])) for n in scores}
    stays = [(price[n][i].item(), n) for n, c in kept.items() for i in c.tolist() if len(c) > 1]
    for name, chosen in kept.items():
        gone = torch.ones(len(scores[name]), dtype=torch.bool)
        gone[chosen] = False
        if gone.any() and stays:
            lowest = min(p for p, _ in stays)
            assert price[name][gone].max().item() <= lowest + LOSS_RELATIVE


def test_basels_rule_keeps_one_share_of_the_mass_in_every_layer():
    costs = _costs([(24, 24), (24, 24)])
    scores = {
        "layer0": torch.tensor([10.0, 1, 1, 1, 1, 1]),
        "layer1": torch.tensor([1.0, 1, 1, 1, 1, 1]),
    }
    kept = select(scores, costs, 5 * 48, "energy")
    assert [len(c) for c in kept.values()] == [1, 4]


def test_bases_count_as_factors_even_beyond_the_dense_weight():
    costs = _costs([(8, 8)])
    kept = select({"layer0": torch.ones(8)}, costs, 64 + 16, "global")
    assert len(kept["layer0"]) == 5
    assert costs["layer0"].is_dense(4)
    assert not costs["layer0"].is_dense(3)


def test_new_bases_count():
    without, with_new = _costs([(8, 8)]), _costs([(8, 8)], extra=2)
    scores = _scores([(8, 8)], 0)
    assert len(select(scores, without, 48, "global")["layer0"]) == 3
    assert len(select(scores, with_new, 48, "global")["layer0"]) == 1


def test_kept_fraction_falls_geometrically_to_the_budget():
    steps = [kept_after(event, 4, 0.8, 0.05) for event in range(1, 5)]
    assert steps == pytest.approx([0.4, 0.2, 0.1, 0.05])


@pytest.mark.parametrize(
    "wrong",
    [
        {"prune_steps": 0},
        {"steps": -1},
        {"learning_rate": 0.0},
        {"factor_lr": 0.0},
        {"prune_until": 1.5},
        {"importance": "none"},
        {"importance_options": {"probes": 3}},
        {"batch_size": 0},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong)).split("_options")[0]):
        recipe_from({"pruning": wrong}, "recipe")


def test_prunings_come_before_the_pruning_share_ends():
    options = PruningOptions(steps=40, prune_steps=4, prune_until=0.5)
    assert options.prune_at == [0, 5, 10, 15]
    assert PruningOptions(extra_rank=None).extra_rank_for((4096, 11008)) == 32
    assert PruningOptions(extra_rank=None).extra_rank_for((64, 64)) == 1
    assert PruningOptions(extra_rank=3, steps=0).extra_rank_for((64, 64)) == 0
