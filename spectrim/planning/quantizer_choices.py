"""Options of each layer's quantizer, under one budget of bytes.

    min sum_l loss_l(c_l)   subject to   sum_l bytes_l(c_l) <= budget

    loss_l(c) = 1/2 tr(C_g E C_x E^T),   E = W - Q_c(W)

in nats per token. Bits, groups, low rank and single entries are paid for in one currency: a
layer gets more of what lowers the loss most per byte there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectrim.allocation import KnapsackGroup, solve_knapsack
from spectrim.errors import InputError
from spectrim.layers.quantized import QUANTIZERS, quantizer_class
from spectrim.statistics import LayerProblem


@dataclass(frozen=True)
class PricedOptions:
    """Options of a quantizer for one layer: bytes without the bias, loss in nats per token."""

    options: Any
    bytes: int
    loss: float


def price_options(
    problem: LayerProblem, quantizer: str, choices: Sequence[Any], itemsize: int
) -> list[PricedOptions]:
    """Return the choices for one layer with bytes and losses, cheapest first.

    Raises NumericalError or ModelError for what the quantizer cannot store.
    """
    rows, columns = problem.weight.shape
    solve, cost = solver_of(problem, quantizer), quantizer_class(quantizer).cost
    priced = [
        PricedOptions(
            options,
            cost((rows, columns), options, itemsize),
            _loss(problem, solve(options).dense()[0]),
        )
        for options in choices
    ]
    return sorted(priced, key=lambda choice: choice.bytes)


def solver_of(problem: LayerProblem, quantizer: str) -> Any:
    """Return the function from options to the quantized layer of one problem."""
    module = QUANTIZERS.get(quantizer)
    if hasattr(module, "solver"):
        return module.solver(problem)
    return lambda options: module.compress(problem, options)


def choose_options(
    priced: Mapping[str, Sequence[PricedOptions]], budget: int
) -> dict[str, PricedOptions]:
    """Return each layer's choice, of least total loss in at most `budget` bytes.

    Raises InputError if the cheapest choices take more.
    """
    check_budget(sum(choices[0].bytes for choices in priced.values()), budget)
    groups = [_group(choices) for choices in priced.values()]
    picked = solve_knapsack(groups, budget)
    return {n: choices[i] for (n, choices), i in zip(priced.items(), picked, strict=True)}


def check_budget(least: int, budget: int) -> None:
    """Raise InputError if the `least` bytes that layers can take exceed the budget."""
    if least > budget:
        raise InputError(
            f"the budget is {budget:,} bytes, the layers take {least:,} at the cheapest of the "
            "choices; raise --budget-bits, or allow fewer --bits"
        )


def _group(choices: Sequence[PricedOptions]) -> KnapsackGroup:
    costs = np.array([choice.bytes for choice in choices], dtype=np.int64)
    return KnapsackGroup(costs, np.array([choice.loss for choice in choices]))


def _loss(problem: LayerProblem, stored: Any) -> float:
    statistics = problem.statistics
    assert statistics is not None, "choices are priced with the statistics of a calibration"
    error = problem.weight.double() - stored
    outputs, inputs = statistics["gradient_covariance"], statistics["input_covariance"]
    return float(0.5 * statistics.share * ((outputs @ error) * (error @ inputs)).sum())
