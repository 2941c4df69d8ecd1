"""How much text a calibration reads where the recipe does not say."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from spectrim.pipeline.calibration_defaults import (
    FEWEST_TOKENS,
    MOST_TOKENS,
    calibration_length,
    default_length,
    default_sequences,
)
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe
from tests.runs import text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer


class OfWidth:
    def __init__(self, width: int):
        self.width = width

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding(2, self.width)


@pytest.mark.parametrize(
    ("width", "tokens"),
    [(64, FEWEST_TOKENS), (576, FEWEST_TOKENS), (1024, 98_304), (8192, MOST_TOKENS)],
)
@pytest.mark.parametrize("length", [256, 300, 2048])
def test_tokens_follow_the_width(width, tokens, length):
    sequences = default_sequences(OfWidth(width), length)
    assert tokens <= sequences * length < tokens + length


def test_a_recipe_that_says_how_many_gets_them(tmp_path):
    text = text_file(tmp_path / "text.txt")
    given = CalibrationRecipe(data=str(text), sequences=3, length=16)
    blocks = calibration_blocks(tiny_llama(), tiny_tokenizer(), Recipe(calibration=given))
    assert blocks.ids.shape == (3, 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        by_width = CalibrationRecipe(data=str(text), length=16)
        calibration_blocks(tiny_llama(), tiny_tokenizer(), Recipe(calibration=by_width))
    assert f"asked for {FEWEST_TOKENS // 16} sequences" in str(caught[0].message)


@pytest.mark.parametrize(("vocabulary", "length"), [(1000, 2048), (120_000, 256)])
def test_a_row_fits_beside_the_model(vocabulary, length):
    """Rows are half the context, halved until their activations fit three models."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert default_length(model) == 2048
    assert calibration_length(model) == length
