"""Vision-language models: the language model is compressed on text, by name; the rest stays."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

import spectrim
from spectrim.checkpoint import check_causal
from spectrim.errors import InputError, ModelError
from spectrim.layers import CompactLinear
from spectrim.models.kind import IMAGE_TEXT, kind_of
from spectrim.models.usage import NO_TEXT, observe_usage, unread_layers
from spectrim.pipeline.recipe import Recipe, RefinementRecipe
from tests.runs import small_recipe, text_file
from tests.tiny_models import (
    IMAGE_TEXT_MODELS,
    tiny_llama,
    tiny_llava,
    tiny_tokenizer,
    tiny_tokens,
)


@pytest.fixture(params=IMAGE_TEXT_MODELS)
def model(request):
    return IMAGE_TEXT_MODELS[request.param]()


@pytest.mark.few(1)
def test_the_language_model_is_compressed_saved_and_loaded(model, tmp_path):
    assert kind_of(model) is IMAGE_TEXT
    recipe = small_recipe(text_file(tmp_path / "text.txt"), budget=0.6)
    with pytest.warns(UserWarning, match=f"stay dense and outside the budget .*{NO_TEXT}"):
        result = spectrim.compress(model, tiny_tokenizer(), recipe)
    compact = [n for n, m in result.model.named_modules() if isinstance(m, CompactLinear)]
    assert compact
    assert all("language_model" in name for name in compact)
    spectrim.save(result.model, tiny_tokenizer(), str(tmp_path / "out"))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found, expected, before = (
            each(input_ids=tiny_tokens()).logits for each in (loaded, result.model, model)
        )
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)
    again, _ = spectrim.load(str(tmp_path / "out"))
    assert type(again) is type(model)
    figures = spectrim.evaluate(again, tiny_tokenizer(), str(tmp_path / "text.txt"))
    assert figures["perplexity"] > 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForImageTextToText" in card
    with pytest.raises(ModelError, match="not a causal language model"):
        check_causal(tmp_path / "out")


def test_images_are_read_by_the_compressed_model(tmp_path):
    model = tiny_llava()
    recipe = small_recipe(text_file(tmp_path / "text.txt"), budget=0.6)
    result = spectrim.compress(model, tiny_tokenizer(), recipe)
    ids = torch.full((1, 8), model.config.image_token_id)
    ids[0, :4] = tiny_tokens(1, 4)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = result.model(input_ids=ids, pixel_values=pixels).logits
    assert found.shape == (1, 8, 128)
    tower = result.model.model.vision_tower
    assert not any(isinstance(module, CompactLinear) for module in tower.modules())


def test_layers_that_text_does_not_reach(model):
    unread = unread_layers(model, {"input_ids": tiny_tokens(1), "use_cache": False})
    assert unread
    assert not any("language_model" in name or name == "lm_head" for name in unread)
    found = observe_usage(model).unusable
    assert {name for name, why in found.items() if why == NO_TEXT} == set(unread)


def test_all_layers_of_a_text_model_are_read():
    assert unread_layers(tiny_llama(), {"input_ids": tiny_tokens(1)}) == []


def test_steps_of_causal_models_are_refused(tmp_path):
    recipe = Recipe(refinement=(RefinementRecipe("finetune"),))
    with pytest.raises(InputError, match="and a vision-language model cannot be combined"):
        spectrim.compress(tiny_llava(), tiny_tokenizer(), recipe)
