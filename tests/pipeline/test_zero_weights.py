"""Layers whose weight is zero, as in models that were made deeper by blocks that do nothing."""

from __future__ import annotations

import pytest
import torch

from spectrim.pipeline.compress import compress
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer, tiny_tokens

pytestmark = pytest.mark.filterwarnings("ignore::spectrim.errors.NumericalWarning")


@pytest.mark.parametrize(
    ("name", "method"), [("up_proj", "obd"), ("down_proj", "obd"), ("down_proj", "afm")]
)
def test_the_rest_is_compressed(tmp_path, name, method):
    model = tiny_llama()
    model.get_submodule(f"model.layers.1.mlp.{name}").weight.data.zero_()
    recipe = small_recipe(text_file(tmp_path / "a.txt"), method=method)
    compressed = compress(model, tiny_tokenizer(), recipe).model
    logits = compressed(tiny_tokens()).logits
    assert torch.isfinite(logits).all()
    layer = compressed.get_submodule(f"model.layers.1.mlp.{name}")
    assert not layer(torch.randn(3, layer.in_features)).any()
