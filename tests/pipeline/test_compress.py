"""The one trip: what `compress` does is what its steps do one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import spectrim
from spectrim.checkpoint.load import ASSETS, is_bundled
from spectrim.data import BlockSettings
from spectrim.errors import CheckpointError, InputError
from spectrim.pipeline.benchmark import BenchSettings, bench
from spectrim.pipeline.compress import CompressOptions, compress
from spectrim.pipeline.early_checks import check_text
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.quantize_factors import quantize_factors
from spectrim.pipeline.recipe import (
    LatencyRecipe,
    QuantizationRecipe,
    Recipe,
    RefinementRecipe,
)
from spectrim.pipeline.refine import refine
from spectrim.pipeline.replace import cast_for_saving, replace_layers
from spectrim.planning import LayerPlan
from spectrim.pruning.options import PruningOptions
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer, tiny_tokens

INT8 = QuantizationRecipe(8, "rtn", 8)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("compress") / "text.txt")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tiny_tokens()).logits.float()


def test_it_is_what_its_steps_are(text):
    recipe = small_recipe(
        text,
        budget=0.6,
        layer="lowrank",
        refinement=(RefinementRecipe("svd_llm_update"),),
        quantization=INT8,
        save_dtype="bfloat16",
    )
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    result = spectrim.compress(model, tokenizer, recipe)

    decomposition = factorize(model, tokenizer, recipe)
    chosen = plan(decomposition, recipe)
    smaller = replace_layers(model, decomposition, chosen)
    smaller = refine(model, smaller, tokenizer, recipe)
    smaller = quantize_factors(cast_for_saving(smaller, torch.bfloat16), chosen, recipe)
    assert result.plan.layers == chosen.layers
    assert torch.equal(logits(result.model), logits(smaller))
    assert result.recipe == recipe


def test_the_original_and_its_dtype_stay(text):
    model = tiny_llama()
    before = logits(model)
    options = CompressOptions(dtype=torch.bfloat16)
    result = compress(model, tiny_tokenizer(), small_recipe(text), options=options)
    assert torch.equal(logits(model), before)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


def test_a_plan_to_follow_and_a_target_loss(text):
    model, tokenizer, recipe = tiny_llama(), tiny_tokenizer(), small_recipe(text, budget=0.5)
    first = compress(model, tokenizer, recipe)
    followed = compress(model, tokenizer, recipe, options=CompressOptions(plan=first.plan))
    assert followed.plan == first.plan
    assert torch.equal(logits(followed.model), logits(first.model))
    target = first.plan.predicted_loss
    aimed = compress(model, tokenizer, recipe, options=CompressOptions(target_loss=target))
    assert aimed.plan.predicted_loss <= target
    foreign = replace(first.plan, layers={"no.such.layer": LayerPlan((4, 4), 1)})
    with pytest.raises(CheckpointError, match=r"no\.such\.layer"):
        compress(model, tokenizer, recipe, options=CompressOptions(plan=foreign))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"latency": LatencyRecipe(), "layer": "lowrank"},
            CompressOptions(target_loss=0.1),
            "latency and --target-loss cannot be combined",
        ),
        (
            {"pruning": PruningOptions()},
            CompressOptions(target_loss=0.1),
            "pruning and --target-loss cannot be combined",
        ),
        ({"pruning": PruningOptions()}, CompressOptions(), "a task to prune for is missing"),
    ],
)
def test_contradictions_are_refused_before_the_work(text, changes, options, message):
    with pytest.raises(InputError, match=message):
        compress(tiny_llama(), tiny_tokenizer(), small_recipe(text, **changes), options=options)


def test_a_quantized_recipe_in_a_table_fits_its_bytes(text):
    recipe = small_recipe(text, layer="lowrank", quantization=INT8)
    settings = BenchSettings(
        (str(text),), BlockSettings(length=24, max_tokens=200, keep_tail=True)
    )
    recipes = {"int8": recipe, "plain": recipe.with_changes(quantization=None)}
    table = bench(tiny_llama(), tiny_tokenizer(), recipes, (0.3,), settings)
    quantized, plain = table.rows
    assert quantized.error is plain.error is None
    assert not quantized.exceeds
    assert quantized.layer_bytes > 0.9 * quantized.allowed_bytes, "the budget is spent"
    ranks = quantized.recipe["quantization"]["bits"], plain.recipe["quantization"]
    assert ranks == (8, None)


def test_results_are_saved_in_the_dtype_that_the_recipe_names():
    loaded = LoadedModel(tiny_llama(), None, torch.float16)
    recipe = spectrim.Recipe()
    assert loaded.dtype_for(recipe) is torch.float16
    assert loaded.dtype_for(recipe.with_changes(save_dtype="bfloat16")) is torch.bfloat16
    assert loaded.with_save_dtype(recipe) == recipe
    assert loaded.with_dtype(recipe).save_dtype == "float16"


def test_a_text_has_to_be_named():
    """As on the command line; the Python sources are text for the bundled models alone."""
    with pytest.raises(InputError, match=r"no calibration text.*calibration\.data"):
        spectrim.compress(tiny_llama(), tiny_tokenizer())
    check_text(Recipe(), is_bundled("reference"))
    check_text(Recipe(), is_bundled(str(ASSETS / "reference")))
    with pytest.raises(InputError, match="no calibration text"):
        check_text(Recipe(), is_bundled("somebody/model"))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off_they_are_turned_on(text, mode):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    expected = compress(model, tokenizer, small_recipe(text)).plan
    with mode():
        found = compress(model, tokenizer, small_recipe(text)).plan
    assert found.ranks == expected.ranks
