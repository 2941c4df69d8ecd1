"""Tiles by Triton's kernels: found by their form, with the model's own outputs."""

from __future__ import annotations

import pytest
import torch

from spectrim import fuse
from spectrim.inference.tiling import hooks, kernels
from tests.inference.test_fuse import factored
from tests.inference.test_tiling import tiny_bert
from tests.tiny_models import tiny_gpt2, tiny_gqa, tiny_tokens
from tests.tolerances import PRODUCT_ABSOLUTE

pytest.importorskip("triton", reason="kernels need `pip install triton`")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS = (2, 11)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """How often each kernel was called, by name; eleven tokens are enough to wait."""
    made = {"flash_attention": 0, "flash_ffn": 0}

    def counted(name, original):
        def call(*arguments):
            made[name] += 1
            return original(*arguments)

        return call

    for name in made:
        monkeypatch.setattr(kernels, name, counted(name, getattr(kernels, name)))
    monkeypatch.setattr("spectrim.inference.fusion.FEWEST", 1)
    assert hooks.FEWEST > 1
    return made


def run(model, **options):
    with torch.no_grad():
        return model(tiny_tokens(*TOKENS).to(DEVICE), **options)[0]


def check(model, expected_calls, calls, **options):
    model = model.to(DEVICE)
    expected = run(model, **options)
    fuse(model, kernels=True, tiles=True)
    calls.update(dict.fromkeys(calls, 0))
    found = run(model, **options)
    seen = options.get("attention_mask", torch.ones(TOKENS, dtype=torch.long)).bool()
    assert (found - expected)[seen].abs().max() <= PRODUCT_ABSOLUTE
    assert calls == expected_calls


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_an_encoder(kind, calls):
    check(factored(tiny_bert(), kind), {"flash_attention": 2, "flash_ffn": 2}, calls)


@pytest.mark.slow
def test_an_encoder_with_padding(calls):
    mask = torch.ones(TOKENS, dtype=torch.long, device=DEVICE)
    mask[1, 7:] = 0
    model = factored(tiny_bert())
    check(model, {"flash_attention": 2, "flash_ffn": 2}, calls, attention_mask=mask)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_a_decoder_with_grouped_heads_and_rotary_positions(kind, calls):
    model = factored(tiny_gqa(), kind)
    check(model, {"flash_attention": 2, "flash_ffn": 2}, calls, use_cache=False)


def test_a_decoder_that_fills_a_cache_attends_to_what_is_there(calls):
    check(factored(tiny_gqa()), {"flash_attention": 0, "flash_ffn": 2}, calls)


def test_a_form_that_is_no_kernels_is_made_by_tiles(calls):
    check(factored(tiny_gpt2()), {"flash_attention": 0, "flash_ffn": 0}, calls)
