"""SAES-SVD: as AA-SVD, the share of the original inputs' output chosen for each layer (ACES).

    min_{rank r}  E || L_out^T (W - W_hat) x' ||^2 + alpha E || L_out^T (W_hat x' - W x) ||^2

which is the target `W (x' + beta (x - x'))` with beta = alpha / (1 + alpha). ACES takes the
beta, for alpha in [alpha_low, alpha_high], that leaves the smallest share of the whitened
target outside its top subspaces (`spectrim/linalg/aces.py`).

Memory: both models, two arrays of hidden states, tokens x width x 4 bytes, and 2 x in x in x 8
bytes for each tensor that a stage of layers reads. Work: two to three forward passes of each
model, and a Cholesky factor and two eigenproblems per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.linalg.aces import AcesObjective
from spectrim.refinement._sequential import inputs as sequential
from spectrim.refinement._sequential.fit import Problem
from spectrim.refinement._sequential.inputs import SequentialInputs, SequentialOptions
from spectrim.refinement._sequential.run import rewrite
from spectrim.runtime.context import RunContext
from spectrim.training.inputs import Losses, TrainingInputs

REFERENCE = "SAES-SVD, 2026, arXiv:2602.03051"
NEEDS_LOSSLESS = True
REQUIRES = sequential.REQUIRES
requires = sequential.requires


@dataclass(frozen=True)
class Options(SequentialOptions):
    """alpha_low, alpha_high: weight of the original inputs' output against the own inputs'."""

    alpha_low: float = 0.25
    alpha_high: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha_low <= self.alpha_high:
            raise InputError(
                "alpha_low and alpha_high have to satisfy 0 <= alpha_low <= alpha_high, got "
                f"{self.alpha_low} and {self.alpha_high}"
            )

    @property
    def betas(self) -> tuple[float, float]:
        low, high = (alpha / (1 + alpha) for alpha in (self.alpha_low, self.alpha_high))
        return low, high


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Rewrite `inputs.compressed`. Raises InputError without the statistics it needs."""
    task = SequentialInputs("saes_svd", inputs, options, context)
    return rewrite(task, lambda walker: lambda problem: _beta(problem, options.betas))


def _beta(problem: Problem, interval: tuple[float, float]) -> float:
    assert problem.shift is not None, "saes walks the original too"
    target = _whitened(problem, problem.in_metric.covariance)
    change = _whitened(problem, problem.shift)
    return AcesObjective.of(target, change, problem.rank).best(interval)


def _whitened(problem: Problem, moment: Tensor) -> Tensor:
    """`L_out^T W M L_in^{-T}` of a moment M (in, in): S for M = C, D for M = Delta."""
    product = problem.out_metric.whiten(problem.weight) @ moment
    factor = problem.in_metric.factor
    return torch.linalg.solve_triangular(factor, product.T, upper=False).T
