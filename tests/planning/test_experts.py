"""Experts and ranks under one budget, against all combinations."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from spectrim.allocation import KnapsackGroup, solve_knapsack
from spectrim.errors import InputError
from spectrim.linalg.truncated import Factors
from spectrim.planning import (
    Decomposition,
    follow_plan,
    load_plan,
    make_plan,
    save_plan,
    size_curve,
)
from spectrim.planning.experts import ExpertCurve, expert_of, is_left
from spectrim.planning.planner import request_for
from spectrim.planning.remaining import without_experts
from spectrim.planning.settings import ExpertSettings, PlanningSettings
from tests.tolerances import FLOAT64_RELATIVE

BLOCKS, EXPERTS, WIDTH = 2, 4, 8
GAP = 1.05
"""Times the best of all: the multiplier's path does not see every combination."""
SETTINGS = PlanningSettings(layer="lowrank", experts=ExpertSettings())


def block(number: int) -> str:
    return f"layers.{number}.experts"


def decomposition(seed: int) -> Decomposition:
    """Layers of falling spectra, and experts whose prices rise ever faster."""
    source = np.random.default_rng(seed)
    shapes = {"layers.0.q": (WIDTH, WIDTH)}
    for number, side, expert in product(range(BLOCKS), ("up", "down"), range(EXPERTS)):
        shapes[f"{block(number)}.{side}.{expert}"] = (WIDTH, WIDTH)
    factors, curves = {}, {}
    for name in shapes:
        squares = source.uniform(0.2, 1) * source.uniform(0.4, 0.8) ** np.arange(WIDTH)
        values = torch.tensor(np.sqrt(squares))
        factors[name] = Factors(torch.eye(WIDTH).double(), torch.eye(WIDTH).double(), values)
        tail = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        curves[name] = torch.tensor(0.05 * tail)
    experts = {}
    for number in range(BLOCKS):
        losses = np.append(0.0, np.cumsum(np.sort(source.uniform(0.01, 0.3, EXPERTS - 1))))
        order = tuple(source.permutation(EXPERTS)[: EXPERTS - 1].tolist())
        experts[block(number)] = ExpertCurve("gate", EXPERTS, order, tuple(losses.tolist()))
    return Decomposition("obd", shapes, factors, curves, experts=experts)


def grouped(held: Decomposition, experts: tuple[int, ...]) -> Decomposition:
    """The up layers of some experts of the first block on one basis."""
    names = [f"{block(0)}.up.{expert}" for expert in experts]
    name = "+".join(names)
    alone = held.select(n for n in held.shapes if n not in names)
    curves = torch.stack([held.curves[n] for n in names])
    alone.update(
        replace(
            held.select(()),
            shapes={name: (WIDTH * len(names), WIDTH)},
            factors={
                name: Factors(
                    torch.eye(WIDTH).repeat(len(names), 1).double(),
                    torch.eye(WIDTH).double(),
                    held.factors[names[0]].spectrum,
                )
            },
            curves={name: curves.sum(0)},
            groups={name: dict.fromkeys(names, WIDTH)},
            shares={name: (curves / curves.sum(0)).nan_to_num(1 / len(names))},
        )
    )
    return alone


def best_loss(held: Decomposition, budget: float, counts) -> float | None:
    """The least loss with so many experts gone, by the knapsack over the rest."""
    request = request_for(held, SETTINGS.at_budget(budget))
    removed = {
        name: curve.order[:count]
        for (name, curve), count in zip(held.experts.items(), counts, strict=True)
    }
    left = request_for(without_experts(held, removed), SETTINGS.at_budget(1.0))
    choices = [request.choices(curve) for curve in left.curves]
    groups = [KnapsackGroup(c.costs, c.losses) for c in choices]
    if sum(int(g.costs[0]) for g in groups) > request.weights:
        return None
    picked = solve_knapsack(groups, request.weights)
    ranks = sum(float(g.losses[i]) for g, i in zip(groups, picked, strict=True))
    pairs = zip(held.experts.values(), counts, strict=True)
    return ranks + sum(curve.losses[count] for curve, count in pairs)


@pytest.mark.parametrize("budget", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_about_the_best_of_all_combinations(seed, budget):
    held = decomposition(seed)
    plan = make_plan(held, SETTINGS.at_budget(budget))
    losses = [best_loss(held, budget, counts) for counts in product(range(EXPERTS), repeat=2)]
    best = min(loss for loss in losses if loss is not None)
    assert plan.kept <= budget + 1e-9
    assert plan.predicted_loss <= GAP * best
    assert plan.predicted_loss >= (1 - FLOAT64_RELATIVE) * best


@pytest.mark.parametrize("members", [(0, 1), (0, 1, 2, 3)])
@pytest.mark.parametrize("budget", [0.6, 0.35])
def test_groups_on_one_basis_join_in(members, budget):
    held = grouped(decomposition(1), members)
    plan = make_plan(held, SETTINGS.at_budget(budget))
    losses = [best_loss(held, budget, counts) for counts in product(range(EXPERTS), repeat=2)]
    best = min(loss for loss in losses if loss is not None)
    assert plan.experts
    assert plan.kept <= budget + 1e-9
    assert (1 - FLOAT64_RELATIVE) * best <= plan.predicted_loss <= GAP * best
    removed = {name: each.removed for name, each in plan.experts.items()}
    assert all(is_left(module, removed) for module in plan.modules)


def test_a_group_keeps_basis_and_part_of_its_curve_for_the_members_that_are_left():
    alone = decomposition(0)
    held = grouped(alone, (0, 1, 2))
    left = without_experts(held, {block(0): (1,)})
    names = [f"{block(0)}.up.{expert}" for expert in (0, 2)]
    group = "+".join(names)
    assert left.groups == {group: dict.fromkeys(names, WIDTH)}
    expected = alone.curves[names[0]] + alone.curves[names[1]]
    assert torch.allclose(left.curves[group], expected)
    single = without_experts(held, {block(0): (0, 1)})
    assert not single.groups
    assert torch.allclose(single.curves[names[1]], alone.curves[names[1]])
    assert set(single.shapes) == {n for n in alone.shapes if is_left(n, {block(0): (0, 1)})}


@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_worse_than_ranks_alone(seed):
    held = decomposition(seed)
    for budget in (0.8, 0.5, 0.3):
        settings = SETTINGS.at_budget(budget)
        ranks = make_plan(held, settings.for_layers())
        assert make_plan(held, settings).predicted_loss <= ranks.predicted_loss + 1e-12


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("budget", [0.8, 0.55])
def test_experts_alone_are_the_best_numbers_that_fit(budget, uniform):
    held = decomposition(1)
    settings = replace(SETTINGS, experts=ExpertSettings(uniform, cut_ranks=False))
    plan = make_plan(held, settings.at_budget(budget))
    assert not plan.ranks
    fitting = []
    for counts in product(range(EXPERTS), repeat=2):
        kept = 1 - 2 * sum(counts) * WIDTH**2 / held.weights
        pairs = zip(held.experts.values(), counts, strict=True)
        if kept <= budget and not (uniform and len(set(counts)) > 1):
            fitting.append(sum(curve.losses[count] for curve, count in pairs))
    assert plan.kept <= budget
    assert plan.predicted_loss == pytest.approx(min(fitting), rel=FLOAT64_RELATIVE)
    if uniform:
        assert len({len(each.removed) for each in plan.experts.values()}) == 1


def test_what_the_plan_counts_is_what_it_keeps():
    held = decomposition(2)
    plan = make_plan(held, SETTINGS.at_budget(0.4))
    removed = {name: each.removed for name, each in plan.experts.items()}
    assert removed
    assert set(plan.layers) == {name for name in held.shapes if is_left(name, removed)}
    weights = sum(
        WIDTH**2 if layer.rank is None else layer.rank * 2 * WIDTH
        for layer in plan.layers.values()
    )
    assert plan.kept == pytest.approx(weights / held.weights, rel=FLOAT64_RELATIVE)
    parts = [*plan.layers.values(), *plan.experts.values()]
    assert plan.predicted_loss == pytest.approx(sum(part.predicted_loss for part in parts))
    for name, each in plan.experts.items():
        assert set(each.removed) == set(held.experts[name].order[: len(each.removed)])


def test_a_followed_plan_has_the_same_figures():
    held = decomposition(2)
    plan = make_plan(held, SETTINGS.at_budget(0.4))
    again = follow_plan(plan, held, SETTINGS.at_budget(0.4))
    assert again == replace(plan, kept=again.kept, predicted_loss=again.predicted_loss)
    assert again.kept == pytest.approx(plan.kept, rel=FLOAT64_RELATIVE)
    assert again.predicted_loss == pytest.approx(plan.predicted_loss, rel=FLOAT64_RELATIVE)


def test_plans_and_decompositions_are_read_as_they_were_written(tmp_path):
    held = decomposition(3)
    plan = make_plan(held, SETTINGS.at_budget(0.4))
    for name in ("plan.yaml", "plan.json"):
        save_plan(plan, tmp_path / name)
        assert load_plan(tmp_path / name) == plan
    held.save(tmp_path / "held.safetensors")
    assert Decomposition.load(tmp_path / "held.safetensors").experts == held.experts


@pytest.mark.parametrize(
    "settings", [ExpertSettings(True, False), ExpertSettings(False, False)]
)
def test_a_budget_that_experts_alone_do_not_reach_is_refused(settings):
    given = replace(SETTINGS, experts=settings, budget=0.27)
    with pytest.raises(InputError, match="below what removing experts can reach"):
        make_plan(decomposition(0), given)


def test_the_curve_of_sizes_falls():
    points = size_curve(decomposition(0), SETTINGS, (0.3, 0.5, 0.7, 0.9))
    losses = [point.predicted_loss for point in points]
    assert losses == sorted(losses, reverse=True)


def test_layers_of_experts_are_known_by_their_names():
    assert expert_of("model.layers.3.mlp.experts.down.12") == ("model.layers.3.mlp.experts", 12)
    assert expert_of("model.layers.3.mlp.up_proj") is None
    assert not is_left("a.experts.up.1", {"a.experts": (1,)})
    assert is_left("a.experts.up.2", {"a.experts": (1,)})
