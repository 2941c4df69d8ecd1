"""Low-rank maps to a target other than the layer's own output.

    min_{rank r}  E || L_out^T (t - W_hat x) ||^2,   P = E[t x^T],   C = E[x x^T] = L_in L_in^T
                = || L_out^T (P C^{-1} - W_hat) L_in ||_F^2 + what no W_hat can reach

so the regression `P C^{-1}` takes the weight's place in the solver of `truncated`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectrim.linalg.metric import CovarianceMetric, Metric
from spectrim.linalg.psd import check_finite


def regression(product: Tensor, in_metric: CovarianceMetric) -> Tensor:
    """Return `P C^{-1}` (out, in) from P (out, in), by two triangular solves; float64.

    C is the metric's damped covariance: if t is W x on the same inputs, `P = W C` with the same
    C gives W. Raises NumericalError.
    """
    check_finite(product, "product of targets and inputs")
    return torch.cholesky_solve(product.double().T, in_metric.factor).T


def weighted_square(matrix: Tensor, out_metric: Metric, in_metric: Metric) -> float:
    """Return `|| L_out^T M L_in ||_F^2` of M (out, in)."""
    return float(in_metric.gram(out_metric.whiten(matrix.double()).T).diagonal().sum())
