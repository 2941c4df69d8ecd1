from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig

from spectrim.errors import ModelError
from spectrim.models.causality import check_causal
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.recipe import Recipe
from tests.tiny_models import TINY_MODELS, tiny_tokens


def tiny_bert(is_decoder: bool):
    config = BertConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        is_decoder=is_decoder,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_causal_models_pass(name):
    check_causal(TINY_MODELS[name](), tiny_tokens(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_both_sides_is_refused(dtype):
    with pytest.raises(ModelError, match=r"BertLMHeadModel is not causal.*compress_any"):
        check_causal(tiny_bert(False).to(dtype), tiny_tokens(1))
    check_causal(tiny_bert(True).to(dtype), tiny_tokens(1))


def test_before_anything_is_calibrated():
    with pytest.raises(ModelError, match="not causal"):
        prepare(tiny_bert(False), Recipe())
