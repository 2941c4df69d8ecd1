"""Covariances of few tokens: what no token has shown is not nothing.

    C = S + rho * tr(S) / p * I                                        S = sum_t r_t r_t^T / n
    rho = min(1, ((1 - 2/p) tr(S^2) + tr(S)^2) / ((m + 1 - 2/p) (tr(S^2) - tr(S)^2 / p)))

`rho` is the oracle-approximating intensity of shrinkage to a multiple of the identity, for m
independent Gaussian vectors of p channels: 1 for very few, about tr(S)^2 / (m tr(S^2)), the
effective degrees of freedom over the vectors, for more. Tokens of a text are neither
independent nor Gaussian: n of them count as m = n / 3. The identity is added and S not made
smaller, so that S less the outer product of the mean stays positive semi-definite, and the
predicted loss errs on the side of caution.

A calibration is shrunk if its whole text has fewer than `ENOUGH` tokens per channel of the
widest layer: its covariances are then in full, in every way to run it. Layers that few tokens
of a longer text reached, such as experts, are taken as they are. Source: Chen et al., 2010,
arXiv:0907.4698.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrim.linalg.covariance import BlockDiagonal, Covariance, LowRankDiagonal
from spectrim.statistics._result import LayerStatistics

SHRUNK = ("input_covariance", "gradient_covariance", "output_covariance")
ENOUGH = 1
"""Tokens per channel."""
FEW_TOKENS = "few_tokens"
"""Entry of a calibration's provenance."""
_TOKENS_PER_VECTOR = 3
"""Chosen by the divergence of small models compressed with 8 to 256 tokens."""


@dataclass(frozen=True)
class ShrunkStatistics(LayerStatistics):
    """The statistics `of` a layer, its covariances shrunk."""

    of: LayerStatistics

    def __getitem__(self, statistic: str) -> Any:
        value = self.of[statistic]
        return shrink(value, self.of.count) if statistic in SHRUNK else value


def with_shrinkage(statistics: LayerStatistics) -> LayerStatistics:
    """Return `statistics`, shrunk if their calibration is of too few tokens."""
    if not statistics.calibration.provenance.get(FEW_TOKENS):
        return statistics
    return ShrunkStatistics(statistics.calibration, statistics.layer, statistics)


def is_few(tokens: float, channels: int) -> bool:
    """Return whether a covariance of so many channels is to be shrunk."""
    return tokens < ENOUGH * channels


def shrink(covariance: Tensor | Covariance, tokens: float) -> Tensor | Covariance:
    """Return what to use of a covariance (p, p) of `tokens` tokens, in its own form.

    One that was summed through a weight is returned as it is.
    """
    channels = covariance.shape[0]
    if not is_few(tokens, channels):
        return covariance
    diagonal = covariance.diagonal()
    if isinstance(covariance, BlockDiagonal):
        square = sum(float(block.square().sum()) for block in covariance.blocks)
        added = _added(diagonal, square, tokens)
        eyes = (added * torch.eye(n, dtype=torch.float64) for n in covariance.sizes)
        pairs = zip(covariance.blocks, eyes, strict=True)
        return BlockDiagonal([block + eye.to(block.device) for block, eye in pairs])
    if isinstance(covariance, LowRankDiagonal):
        gram = covariance.factor.T @ covariance.factor
        added = _added(diagonal, float(gram.square().sum()), tokens)
        return LowRankDiagonal(covariance.factor, covariance.rest + added, covariance.sketched)
    if isinstance(covariance, Covariance):
        return covariance
    result = covariance.clone()
    result.diagonal().add_(_added(diagonal, float(covariance.square().sum()), tokens))
    return result


def _added(diagonal: Tensor, square: float, tokens: float) -> float:
    """Return rho * mean(diagonal), `square` being the squared Frobenius norm of S."""
    channels, trace = len(diagonal), float(diagonal.sum())
    spread = (tokens / _TOKENS_PER_VECTOR + 1 - 2 / channels) * (square - trace**2 / channels)
    above = (1 - 2 / channels) * square + trace**2
    return (min(1.0, above / spread) if spread > 0 else 1.0) * trace / channels
