"""ASVD: `min ||(W - W_hat) diag(E|x|^alpha)||_F`.

E|x| (in,) is the mean absolute input of each channel, alpha its exponent (0 is plain SVD). A
diagonal metric measures how large a channel is, not how channels correlate, as the full
covariance of `svd_llm` does. Channels are scaled, none is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from spectrim.decompositions._problem import LayerProblem
from spectrim.linalg.metric import DiagonalMetric, IdentityMetric, Metric

REQUIRES = ("input_magnitude",)
REFERENCE = "Yuan et al., 2023, arXiv:2312.05821"
REDUCES_TO_SVD = True


@dataclass(frozen=True)
class Options:
    """Options of ASVD; `floor` is the smallest scale, relative to the mean, for dead
    channels.
    """

    alpha: float = 0.5
    floor: float = 1e-6


def metric(problem: LayerProblem, options: Options) -> tuple[Metric, Metric]:
    scale = problem.statistic("input_magnitude") ** options.alpha
    return IdentityMetric(), DiagonalMetric(scale.clamp_min(options.floor * scale.mean()))
