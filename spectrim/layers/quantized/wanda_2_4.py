"""2:4 sparsity by output change: keep the two largest `|w_ij| sqrt(E[x_j^2])` of every four.

`E[x_j^2]` is the diagonal of the input covariance; the product is the root mean square change
of output i when w_ij alone is dropped. Groups of four are neighbors in a row, stored as by
`sparse_2_4`: half the values and two bits for the place of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectrim.layers.quantized.sparse_2_4 import Options, Sparse24Linear, keep_largest

if TYPE_CHECKING:
    from spectrim.layers.quantized._base import QuantizationProblem

REQUIRES = ("input_covariance",)
REFERENCE = "Sun et al., 2023, arXiv:2306.11695"


def compress(problem: QuantizationProblem, options: Options) -> Sparse24Linear:
    """Prune as `sparse_2_4`, weighted by the root of the input covariance's diagonal."""
    scale = problem.statistic("input_covariance").diagonal().clamp_min(0).sqrt()
    return keep_largest(problem, options, problem.weight.abs().double() * scale)


LAYER = Sparse24Linear
