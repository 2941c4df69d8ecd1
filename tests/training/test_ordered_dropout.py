"""Ordered dropout: which prefix a step cuts to, what the penalty is, and what is learned."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.layers.lowrank import LowRankLinear
from spectrim.training.ordered_dropout import OrderedDropout, cut_to, needed_rank
from tests.tolerances import FLOAT32_RELATIVE


def layer(rows: int = 8, columns: int = 6, rank: int = 6, seed: int = 0) -> LowRankLinear:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator)
    right = torch.randn(rank, columns, generator=generator)
    return LowRankLinear.from_factors(
        left, right, torch.randn(rows, generator=generator)
    ).float()


def test_every_epoch_draws_all_pairs_once():
    dropout = OrderedDropout({"a": layer(rank=3), "b": layer(rank=5)}, 0)
    epochs = [[dropout.pair(step) for step in range(8 * e, 8 * e + 8)] for e in range(2)]
    every = {("a", b) for b in (1, 2, 3)} | {("b", b) for b in (1, 2, 3, 4, 5)}
    assert all(Counter(epoch) == Counter(every) for epoch in epochs)
    assert epochs[0] != epochs[1]
    again = OrderedDropout({"a": layer(rank=3), "b": layer(rank=5)}, 0)
    assert [again.pair(step) for step in (11, 3, 12)] == [
        epochs[1][3],
        epochs[0][3],
        epochs[1][4],
    ]
    with pytest.raises(ModelError, match="no factored layer"):
        OrderedDropout({}, 0)


@pytest.mark.parametrize("rank", [1, 4, 6])
def test_a_cut_layer_is_its_prefix(rank):
    kind, x = layer(), torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    with cut_to({kind: rank}):
        found = kind(x)
    left, right = kind.left.weight[:, :rank], kind.right.weight[:rank]
    assert (found - (x @ right.T @ left.T + kind.left.bias)).norm() < 1e-5
    assert not torch.equal(kind(x), found) or rank == 6


def test_the_penalty_is_the_double_sum_and_its_gradient_is_finite_at_zero():
    layers = {"a": layer(), "b": layer(9, 5, 4)}
    expected = sum(
        one.left.weight[:, b:].norm() + one.right.weight[b:].norm()
        for one in layers.values()
        for b in range(one.rank)
    )
    dropout = OrderedDropout(layers, 0)
    assert abs(dropout.penalty() - expected) < FLOAT32_RELATIVE * expected
    with torch.no_grad():
        layers["a"].left.weight[:, 3:] = 0
    dropout.penalty().backward()
    assert bool(layers["a"].left.weight.grad.isfinite().all())


def test_a_linear_map_learns_the_truncated_svd_for_every_prefix():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    other = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    target = basis[:, :6] * torch.tensor([4.0, 3.0, 2.0, 1.5, 1.0, 0.5]) @ other
    kind = layer()
    nn.init.zeros_(kind.left.bias)
    kind.left.bias.requires_grad_(False)
    dropout = OrderedDropout({"w": kind}, 0)
    optimizer = torch.optim.Adam([kind.left.weight, kind.right.weight], lr=0.1)
    unit = torch.eye(6)
    for step in range(2000):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 2000)
        optimizer.zero_grad()
        with dropout.cut(step):
            (kind(unit).T - target).square().sum().backward()
        optimizer.step()
    values = torch.linalg.svdvals(target)
    for rank in range(1, 7):
        left, right = kind.left.weight[:, :rank], kind.right.weight[:rank]
        error = float((left @ right - target).square().sum().detach())
        assert error < 1.05 * float(values[rank:].square().sum()) + 0.01


@torch.no_grad()
def test_the_needed_rank_is_where_the_tail_begins_to_be_small():
    kind = layer()
    before: Tensor = kind.left.weight.clone()
    kind.left.weight[:, 4:] *= 1e-4
    kind.right.weight[4:] *= 1e-4
    assert needed_rank(kind, 1e-2) == 4
    assert needed_rank(kind, 0.0) == 6
    kind.left.weight.copy_(before).mul_(0)
    assert needed_rank(kind, 0.5) >= 1
