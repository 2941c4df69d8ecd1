"""2:4 sparsity by output change: of every four the two largest `|w_ij| sqrt(E[x_j^2])` stay.

E[x_j^2] is the diagonal of the input covariance; the product is what dropping w_ij alone adds
to the root mean square of output i. Groups of four are neighbours in a row, and what stays is
stored as by `sparse_2_4`: half the values and two bits for the place of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectrim.layers.quantized.sparse_2_4 import Options, Sparse24Linear, keep_largest

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES = ("input_covariance",)
REFERENCE = "Sun et al., 2023, arXiv:2306.11695"


def compress(problem: QuantizationProblem, options: Options) -> Sparse24Linear:
    """As `sparse_2_4`, with the root of the input covariance's diagonal as the weight."""
    scale = problem.statistic("input_covariance").diagonal().clamp_min(0).sqrt()
    return keep_largest(problem, options, problem.weight.abs().double() * scale)


LAYER = Sparse24Linear
