"""The fused feed-forward layer against its layers one after another, in exact arithmetic."""

from __future__ import annotations

import pytest
import torch

from spectrim.errors import InputError
from spectrim.inference.kernels import flash_ffn
from spectrim.inference.kernels.flash_ffn import reference
from tests.inference.kernels.checking import DTYPES, close, random_layer, random_tensor

WIDTH, HIDDEN = 20, 75


def parts(kind, dtype, rank=18):
    up = random_layer(kind, (HIDDEN, WIDTH), rank, dtype, 1)
    gate = random_layer(kind, (HIDDEN, WIDTH), rank - 11, dtype, 2)
    down = random_layer(kind, (WIDTH, HIDDEN), 9, dtype, 3)
    return up, gate, down


def fused(operator, layers, x, activation, gated):
    up, gate, down = layers
    given = (gate.right(x), gate.second) if gated else None
    first = (down.right.weight, down.right.bias)
    return operator((up.right(x), up.second), given, first, activation)


def exactly(layers, x, activation, gated):
    up, gate, down = layers
    act = reference.ACTIVATIONS[activation]
    hidden = up.exact(x)
    hidden = act(gate.exact(x)) * hidden if gated else act(hidden)
    return down.exact.first(hidden)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_it_is_its_layers_one_after_another(kind, dtype, gated):
    layers = parts(kind, dtype)
    x = random_tensor(2, 19, WIDTH, dtype=dtype)
    exact = exactly(layers, x.double().cpu(), "silu", gated)
    for operator in (flash_ffn, reference.flash_ffn):
        result = fused(operator, layers, x, "silu", gated)
        assert result.shape == exact.shape
        assert close(result, exact)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations(activation):
    layers = parts("lowrank", torch.float32)
    x = random_tensor(5, WIDTH)
    exact = exactly(layers, x.double().cpu(), activation, False)
    assert close(fused(flash_ffn, layers, x, activation, False), exact)


def test_more_ranks_than_a_tile_holds(monkeypatch):
    from spectrim.inference.kernels.flash_ffn import triton

    monkeypatch.setattr(triton, "MOST_DOWN", 16)
    layers = (*parts("lowrank", torch.float32)[:2], random_layer("lowrank", (30, HIDDEN), 21,
              torch.float32))  # fmt: skip
    x = random_tensor(5, WIDTH)
    exact = exactly(layers, x.double().cpu(), "gelu", True)
    assert close(fused(flash_ffn, layers, x, "gelu", True), exact)


def test_what_does_not_fit_says_so():
    layers = parts("lowrank", torch.float32)
    with pytest.raises(InputError, match="unknown activation 'swish'; available: silu"):
        fused(flash_ffn, layers, random_tensor(2, WIDTH), "swish", True)
    other = random_layer("lowrank", (HIDDEN + 1, WIDTH), 4, torch.float32)
    with pytest.raises(InputError, match=r"hidden widths differ: \[75, 76\]"):
        fused(flash_ffn, (other, *layers[1:]), random_tensor(2, WIDTH), "silu", True)
