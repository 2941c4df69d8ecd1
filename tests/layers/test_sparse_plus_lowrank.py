"""Factors and a few free entries: the entries' places, their gradients, and what they add."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import spectrim
from spectrim.layers.sparse_plus_lowrank import (
    DENSITY,
    Options,
    SparsePlusLowRankLinear,
    nonzeros_of,
    random_columns,
)
from spectrim.linalg.truncated import Factors
from tests.tolerances import FLOAT64_RELATIVE

SHAPE, RANK = (40, 70), 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def full_factors(weight: Tensor) -> Factors:
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return Factors(u * s, v, s)


def layer(seed: int = 0) -> SparsePlusLowRankLinear:
    columns = random_columns(SHAPE, seed)
    factors = drawn(SHAPE[0], RANK), drawn(RANK, SHAPE[1], seed=1)
    values = drawn(*columns.shape, seed=2)
    return SparsePlusLowRankLinear.of(factors, drawn(SHAPE[0], seed=3), values, columns)


def test_parameters_are_counted_as_published():
    """`r (m + n) + s m`, s m = 3% of the weight."""
    found = sum(p.numel() for n, p in layer().named_parameters() if not n.endswith("bias"))
    assert found == RANK * sum(SHAPE) + SHAPE[0] * nonzeros_of(SHAPE[1])
    assert nonzeros_of(4096) == round(DENSITY * 4096)


def test_the_backward_pass_is_that_of_the_materialized_weight():
    kind, x = layer(), drawn(2, 6, SHAPE[1], seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: kind(args[0]), (x, *kind.parameters()))
    kind(x).square().sum().backward()
    twin = x.detach().clone().requires_grad_()
    weight, bias = kind.dense()
    weight.requires_grad_()
    (twin @ weight.T + bias).square().sum().backward()
    expected = weight.grad.gather(1, kind.columns.long())
    assert (kind.values.grad - expected).norm() < FLOAT64_RELATIVE * expected.norm()
    assert (x.grad - twin.grad).norm() < FLOAT64_RELATIVE * twin.grad.norm()


def test_a_lower_precision_is_trained_through():
    kind = layer().float()
    x = drawn(3, SHAPE[1]).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        kind(x).float().square().sum().backward()
    assert kind.values.grad.dtype == torch.float32
    assert bool(kind.values.grad.any())


@pytest.mark.parametrize("places", ["largest", "random"])
def test_free_entries_are_what_the_cut_left_out(places):
    weight = drawn(*SHAPE, seed=6)
    kind = SparsePlusLowRankLinear.from_full(full_factors(weight), RANK, None, Options(places))
    low = kind.left.weight @ kind.right.weight
    rest = (weight - kind.dense()[0]).square().sum()
    without = (weight - low).square().sum()
    assert rest < without
    kept = kind.values.square().sum()
    assert abs(without - kept - rest) < FLOAT64_RELATIVE * without
    if places == "largest":
        assert rest < (1 - 2 * DENSITY) * without
        other = SparsePlusLowRankLinear.from_full(
            full_factors(weight), RANK, None, Options("random")
        )
        assert rest < (weight - other.dense()[0]).square().sum()


def test_places_are_ascending_and_drawn_from_the_seed():
    first, again, other = (random_columns(SHAPE, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool((first.long().diff(dim=1) > 0).all())


@pytest.mark.parametrize(
    ("columns", "message"), [([0, 0], "twice"), ([1, 70], "outside"), ([-1, 2], "outside")]
)
def test_wrong_places_are_named(columns, message):
    kind = layer()
    assert kind.validate() is None
    kind.columns[3] = torch.tensor(columns)
    assert message in kind.validate()


def test_columns_of_wide_layers_take_more_bits():
    assert SparsePlusLowRankLinear.empty((2, 40_000), 1, False).columns.dtype == torch.int32
    free = nonzeros_of(40_000) * 2
    assert SparsePlusLowRankLinear.cost(2, 40_000, 1) == 40_002 + 3 * free


@pytest.mark.slow
def test_fusing_leaves_it_as_it_is():
    from spectrim.layers.lowrank import LowRankLinear
    from tests.checkpoint.compressing import replace_by_svd
    from tests.tiny_models import tiny_llama, tiny_tokens

    model = tiny_llama()
    replace_by_svd(model, "model.layers.0.mlp.up_proj", "sparse_plus_lowrank", 4)
    replace_by_svd(model, "model.layers.0.mlp.down_proj", "lowrank", 4)
    with torch.inference_mode():
        before = model(tiny_tokens()).logits
        report = spectrim.fuse(model)
        after = model(tiny_tokens()).logits
    assert report.layers == ("model.layers.0.mlp.down_proj",)
    assert isinstance(model.model.layers[0].mlp.down_proj, LowRankLinear)
    assert (before - after).abs().max() < 1e-5
