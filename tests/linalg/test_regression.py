"""The general target solver against sums over the tokens themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.errors import NumericalError
from spectrim.linalg.metric import CovarianceMetric, IdentityMetric, Metric
from spectrim.linalg.regression import regression, weighted_square
from spectrim.linalg.truncated import Factors, weighted_svd
from tests.layer_problems import random_layer, random_tokens
from tests.tolerances import FLOAT64_RELATIVE

SHAPES = [(6, 9), (9, 6), (7, 7)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
outs = pytest.mark.parametrize("out", ["identity", "covariance"])


def solve_target(product: Tensor, out: Metric, inputs: CovarianceMetric) -> Factors:
    return weighted_svd(regression(product, inputs), out, inputs)


class Tokens:
    """Inputs x (n, in), targets t (n, out) that are no linear map of them, output metric."""

    def __init__(self, shape: tuple[int, int], out: str):
        self.weight, _ = random_layer(shape)
        found = random_tokens(self.weight, None, 200)
        self.x = found.x
        self.t = torch.tanh(found.y) + 0.1 * found.gradient
        self.moment = found.gradient.T @ found.gradient / 200
        self.out: Metric = IdentityMetric()
        if out == "covariance":
            self.out = CovarianceMetric(self.moment, 1e-3)
        self.inputs = CovarianceMetric(self.x.T @ self.x / 200, 0.0)
        self.product = self.t.T @ self.x / 200

    def error(self, weight: Tensor) -> float:
        """Mean over tokens of `|| L_out^T (t - W_hat x) ||^2`."""
        return float(self.out.whiten((self.t - self.x @ weight.T).T).square().sum() / 200)


@shapes
@outs
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_no_change_of_the_factors_is_better(shape, out, rank):
    tokens = Tokens(shape, out)
    left, right = solve_target(tokens.product, tokens.out, tokens.inputs).truncated(rank)
    best = tokens.error(left @ right)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(10):
            noise = [torch.randn(m.shape, generator=generator).double() for m in (left, right)]
            other = (left + size * noise[0]) @ (right + size * noise[1])
            assert tokens.error(other) >= best * (1 - FLOAT64_RELATIVE)


@shapes
@outs
def test_the_error_is_the_tail_and_what_no_map_reaches(shape, out):
    tokens = Tokens(shape, out)
    factors = solve_target(tokens.product, tokens.out, tokens.inputs)
    least_squares = torch.linalg.lstsq(tokens.x, tokens.t).solution.T
    unreachable = tokens.error(least_squares)
    for rank in range(1, factors.max_rank + 1):
        tail = float(factors.spectrum[rank:].square().sum())
        found = tokens.error(factors.weight(rank))
        assert found == pytest.approx(unreachable + tail, rel=FLOAT64_RELATIVE)
        size = weighted_square(factors.weight(rank) - least_squares, tokens.out, tokens.inputs)
        assert size == pytest.approx(tail, rel=FLOAT64_RELATIVE, abs=FLOAT64_RELATIVE)


@shapes
@outs
def test_the_layers_own_output_is_the_plain_problem(shape, out):
    tokens = Tokens(shape, out)
    product = tokens.weight @ tokens.inputs.covariance
    assert torch.allclose(regression(product, tokens.inputs), tokens.weight, atol=1e-8)
    general = solve_target(product, tokens.out, tokens.inputs)
    plain = weighted_svd(tokens.weight, tokens.out, tokens.inputs)
    assert torch.allclose(general.weight(3), plain.weight(3), atol=1e-7)


def test_a_product_that_is_not_finite_is_refused():
    tokens = Tokens((6, 9), "identity")
    with pytest.raises(NumericalError, match="product"):
        solve_target(tokens.product * torch.nan, tokens.out, tokens.inputs)
