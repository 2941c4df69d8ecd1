"""Ranks of paths: within the budget, and never beaten by another plan of the same bytes."""

from __future__ import annotations

import itertools

import pytest
import torch

from spectrim.linalg.spectrum import tail_energy
from spectrim.linalg.truncated import Factors
from spectrim.planning import Decomposition
from spectrim.planning.correction_ranks import correction_ranks, uniform_cost
from spectrim.planning.settings import PlanningSettings
from tests.tolerances import LOSS_RELATIVE

SHAPES = {"a": (3, 5), "b": (4, 4), "c": (6, 2)}


def residual() -> Decomposition:
    generator = torch.Generator().manual_seed(0)
    result = Decomposition("svd", dict(SHAPES), {}, {})
    for name, (out, inner) in SHAPES.items():
        rank = min(out, inner)
        spectrum = torch.rand(rank, generator=generator).double().sort(descending=True).values
        result.factors[name] = Factors(
            torch.zeros(out, rank), torch.zeros(rank, inner), spectrum
        )
        result.curves[name] = tail_energy(spectrum)
    return result


def ranks(allocation: str, multiple: int = 1, **given: int) -> dict[str, int]:
    settings = PlanningSettings(allocation=allocation, rank_multiple=multiple)
    numbers = given["bytes"] // 2 if "bytes" in given else uniform_cost(SHAPES, given["rank"])
    return correction_ranks(residual(), settings, numbers)


def cost(chosen: dict[str, int]) -> int:
    return sum(sum(SHAPES[name]) * rank for name, rank in chosen.items())


@pytest.mark.parametrize("numbers", [0, 7, 8, 20, 33, 48, 100])
def test_the_best_plan_of_all(numbers):
    chosen = ranks("loss_optimal", bytes=2 * numbers)
    curves = residual().curves
    assert cost(chosen) <= numbers
    loss = sum(float(curves[name][rank]) for name, rank in chosen.items())
    for plan in itertools.product(*(range(min(shape) + 1) for shape in SHAPES.values())):
        other = dict(zip(SHAPES, plan, strict=True))
        if cost(other) <= numbers:
            found = sum(float(curves[name][rank]) for name, rank in other.items())
            assert loss <= found + LOSS_RELATIVE


def test_uniform_is_the_rank_asked_for_as_far_as_shapes_go():
    assert ranks("uniform", rank=3) == {"a": 3, "b": 3, "c": 2}
    assert ranks("uniform", rank=0) == {"a": 0, "b": 0, "c": 0}
    assert ranks("uniform", bytes=2 * uniform_cost(SHAPES, 2)) == dict.fromkeys(SHAPES, 2)
    assert ranks("uniform", bytes=2 * uniform_cost(SHAPES, 2) - 1) == dict.fromkeys(SHAPES, 1)


def test_multiples():
    assert set(ranks("loss_optimal", 2, bytes=60).values()) <= {0, 2, 4}
    assert ranks("uniform", 2, rank=3) == dict.fromkeys(SHAPES, 2)
