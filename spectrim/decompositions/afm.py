"""AFM, LoRD's solver: keep the top principal directions of the output, the bias takes the mean.

Cov(y) = U diag(l) U^T,   W_hat = U_r U_r^T W,   b_hat = b + (I - U_r U_r^T)(E[y] - b)
"""

from __future__ import annotations

import torch

from spectrim.decompositions._problem import LayerProblem
from spectrim.linalg.psd import check_covariance, check_finite, descending_eigh
from spectrim.linalg.truncated import Factors
from spectrim.registry import NoOptions

REQUIRES = ("output_covariance",)
REFERENCE = "Yu and Wu, 2024, arXiv:2405.18146; Kaushal et al., 2023, arXiv:2309.14021"


def decompose(problem: LayerProblem, options: NoOptions) -> Factors:
    moments = problem.statistic("output_covariance")
    check_finite(problem.weight, "weight")
    check_covariance(moments.covariance, f"output covariance of {problem.name}")
    weight = problem.weight.double()
    reachable = torch.linalg.qr(weight).Q  # (out, k): W x + b varies in no other direction
    values, vectors = descending_eigh(reachable.T @ moments.covariance @ reachable)
    basis = reachable @ vectors
    mean = moments.mean if problem.bias is None else moments.mean - problem.bias.double()
    return Factors(basis, basis.T @ weight, values.sqrt(), basis.T @ mean).balanced()
