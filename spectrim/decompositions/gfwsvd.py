"""GFWSVD: bidirectional whitening by the best Kronecker fit of the Fisher of batch gradients.

    I_F ~= A (x) B,   min ||L_B^T (W - W_hat) L_A||_F,   A = L_A L_A^T,   B = L_B L_B^T

The Fisher is that of the weight's gradients, each summed over a bucket of sequences; the best
A (in, in) and B (out, out) are the first singular pair of its rearrangement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from spectrim.decompositions._problem import LayerProblem
from spectrim.linalg.kronecker import rank_one_kronecker
from spectrim.linalg.metric import CovarianceMetric, Metric

REQUIRES = ("weight_gradients",)
REFERENCE = "Chekalina et al., 2025, arXiv:2505.17974"


@dataclass(frozen=True)
class Options:
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3


def metric(problem: LayerProblem, options: Options) -> tuple[Metric, Metric]:
    in_factor, out_factor = rank_one_kronecker(problem.statistic("weight_gradients"))
    return (
        CovarianceMetric(out_factor, options.damping, f"Fisher factor B of {problem.name}"),
        CovarianceMetric(in_factor, options.damping, f"Fisher factor A of {problem.name}"),
    )
