"""Attention from factors against attention on full-width tensors, in exact arithmetic."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from spectrim.errors import InputError
from spectrim.inference.kernels import flash_attention
from spectrim.inference.kernels.flash_attention import Heads, reference
from tests.inference.kernels.checking import DTYPES, close, random_layer, random_tensor
from tests.inference.kernels.conftest import DEVICE

MODEL = 24


def layers_for(kind, heads, dtype, ranks=(18, 7, 11), bias=True):
    counts = (heads.queries, heads.keys, heads.keys)
    return [
        random_layer(kind, (count * heads.width, MODEL), rank, dtype, seed, bias)
        for seed, (count, rank) in enumerate(zip(counts, ranks, strict=True))
    ]


def turns(heads, positions):
    """transformers' own cosines and sines (1, S, width)."""
    config = LlamaConfig(hidden_size=heads.width * 2, num_attention_heads=2)
    place = torch.arange(positions)[None]
    return LlamaRotaryEmbedding(config)(torch.zeros(1), place)


def exactly(layers, x, queries, heads, mask=None, rotary=None):
    """Full-width float64 q, k and v through torch's own attention."""
    x = x.double().cpu()
    given = (x[:, -queries:], x, x)
    q, k, v = (
        layer.exact(part).unflatten(-1, (-1, heads.width)).transpose(1, 2)
        for layer, part in zip(layers, given, strict=True)
    )
    if rotary is not None:
        cosines, sines = (t.double() for t in rotary)
        q = apply_rotary_pos_emb(q, q, cosines[:, -queries:], sines[:, -queries:])[0]
        k = apply_rotary_pos_emb(k, k, cosines, sines)[0]
    seen = torch.ones(queries, x.shape[1], dtype=torch.bool)
    seen = seen.tril(x.shape[1] - queries) if heads.causal else seen
    seen = seen[None, None] if mask is None else seen & mask[:, None, None].cpu()
    attend = torch.nn.functional.scaled_dot_product_attention
    y = attend(q, k, v, seen, scale=heads.scaling, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


def fused(operator, layers, x, queries, heads, mask=None, rotary=None):
    z = [layer.right(x) for layer in layers]
    turned = None if rotary is None else tuple(t.to(x.device, x.dtype) for t in rotary)
    seconds = tuple(layer.second for layer in layers)
    return operator((z[0][:, -queries:], z[1], z[2]), seconds, heads, mask, turned)


def check(layers, x, queries, heads, mask=None, rotary=None):
    exact = exactly(layers, x, queries, heads, mask, rotary)
    for operator in (flash_attention, reference.flash_attention):
        result = fused(operator, layers, x, queries, heads, mask, rotary)
        assert result.shape == exact.shape
        assert close(result, exact)


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_an_encoder_with_padding(kind, dtype):
    heads = Heads(2, 2, 9, causal=False)
    layers = layers_for(kind, heads, dtype)
    x = random_tensor(2, 21, MODEL, dtype=dtype)
    mask = torch.ones(2, 21, dtype=torch.bool, device=DEVICE)
    mask[1, 13:] = False
    check(layers, x, 21, heads, mask)


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_a_decoder_with_grouped_heads_and_rotary_positions(kind, dtype):
    heads = Heads(4, 2, 10, causal=True)
    layers = layers_for(kind, heads, dtype, bias=False)
    check(layers, random_tensor(1, 19, MODEL, dtype=dtype), 19, heads, None, turns(heads, 19))


@pytest.mark.parametrize("queries", [1, 3])
def test_new_tokens_behind_a_cache(queries):
    heads = Heads(2, 1, 12, causal=True)
    layers = layers_for("pivoted", heads, torch.float32)
    check(layers, random_tensor(2, 20, MODEL), queries, heads, None, turns(heads, 20))


def test_more_keys_and_ranks_than_a_tile_holds(monkeypatch):
    from spectrim.inference.kernels.flash_attention import triton

    for name in ("MOST_QUERIES", "MOST_KEYS", "MOST_RANKS"):
        monkeypatch.setattr(triton, name, 16)
    heads = Heads(2, 1, 8, causal=True, scale=0.3)
    layers = layers_for("lowrank", heads, torch.float32)
    check(layers, random_tensor(1, 37, MODEL), 37, heads, None, turns(heads, 37))


def test_left_padding_and_a_query_that_sees_nothing():
    heads = Heads(2, 2, 8, causal=True)
    layers = layers_for("lowrank", heads, torch.float32)
    x = random_tensor(2, 18, MODEL)
    mask = torch.ones(2, 18, dtype=torch.bool, device=DEVICE)
    mask[0, :5] = False
    exact = exactly(layers, x, 18, heads, mask)
    for operator in (flash_attention, reference.flash_attention):
        result = fused(operator, layers, x, 18, heads, mask)
        assert (result[0, :5] == 0).all()
        assert close(result[0, 5:], exact[0, 5:])
        assert close(result[1], exact[1])


def test_shapes_that_do_not_fit_say_so():
    heads = Heads(2, 2, 8, causal=True)
    layers = layers_for("lowrank", heads, torch.float32)
    x = random_tensor(1, 4, MODEL)
    with pytest.raises(InputError, match="q: factors are 16 x 18 for 3 heads of 8"):
        fused(flash_attention, layers, x, 4, Heads(3, 2, 8, causal=True))
