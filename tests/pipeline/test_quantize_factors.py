"""Factors in fewer bits: the bytes that the plan counted, the same outputs when loaded."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from spectrim.checkpoint import (
    SpectrimConfig,
    export_dense,
    export_self_contained,
    load,
    save_compressed,
)
from spectrim.errors import CheckpointError, InputError, ModelError
from spectrim.evaluation.size import tensor_bytes
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.compress import compress
from spectrim.pipeline.finetune import FinetuneSettings, finetune
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.quantize_factors import needs_calibration, quantize_factors
from spectrim.pipeline.recipe import QuantizationRecipe, SharingRecipe
from spectrim.pipeline.replace import cast_for_saving, replace_layers
from spectrim.planning import Plan
from tests.checkpoint.test_fresh_process import WITHOUT_SPECTRIM, run
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_tokenizer, tiny_tokens
from tests.tolerances import DENSE_EXPORT_ABSOLUTE

needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is not installed (extra spectrim[torchao])"
)
CASES = [
    pytest.param(QuantizationRecipe(8), 2, marks=needs_torchao, id="torchao8"),
    pytest.param(QuantizationRecipe(8, "rtn"), 2, id="rtn8"),
    pytest.param(QuantizationRecipe(4, "rtn", 8), 2, id="rtn4"),
    pytest.param(QuantizationRecipe(4, "gptq", 8), 2, marks=pytest.mark.slow, id="gptq4"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


def recipe_for(text, given, multiple=2, **changes):
    base = {"budget": 0.2, "rank_multiple": multiple, "save_dtype": "float32"}
    return small_recipe(text, quantization=given, **(base | changes))


def made(model, recipe):
    """The plan, and the quantised model."""
    tokenizer = tiny_tokenizer()
    decomposition = factorize(model, tokenizer, recipe)
    chosen = plan(decomposition, recipe)
    dtype = getattr(torch, recipe.save_dtype)
    smaller = cast_for_saving(replace_layers(model, decomposition, chosen), dtype)
    known = calibrate(model, tokenizer, recipe) if needs_calibration(recipe) else None
    return chosen, quantize_factors(smaller, chosen, recipe, known)


@torch.no_grad()
def logits(model):
    return model(tiny_tokens()).logits.float()


@pytest.mark.few(2)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "moe"])
@pytest.mark.parametrize(("given", "multiple"), CASES)
def test_a_checkpoint_gives_the_same_outputs(architecture, given, multiple, text, tmp_path):
    _, smaller = made(TINY_MODELS[architecture](), recipe_for(text, given, multiple))
    expected = logits(smaller)
    save_compressed(smaller, None, tmp_path / "out", smaller.config.quantization_config)
    again = load(tmp_path / "out", dtype=torch.float32)[0]
    assert torch.equal(logits(again), expected)
    save_compressed(again, None, tmp_path / "twice", again.config.quantization_config)
    assert torch.equal(logits(load(tmp_path / "twice", dtype=torch.float32)[0]), expected)


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", ["lowrank", "pivoted"])
@pytest.mark.parametrize(("given", "multiple"), CASES)
def test_the_bytes_are_those_of_the_budget(given, multiple, layer, dtype, text, tmp_path):
    budget = 0.5 if dtype == "bfloat16" else 0.25
    changes = {"layer": layer, "save_dtype": dtype, "budget": budget}
    model = TINY_MODELS["llama"]()
    chosen, smaller = made(model, recipe_for(text, given, multiple, **changes))
    save_compressed(smaller, None, tmp_path / "out", smaller.config.quantization_config)
    sizes = tensor_bytes(tmp_path / "out")
    held = sum(
        bytes_
        for name, bytes_ in sizes.items()
        if name.startswith(tuple(f"{module}." for module in chosen.modules))
        and not name.endswith("pivot_mask")
    )
    itemsize = getattr(torch, dtype).itemsize
    dense = itemsize * sum(
        out * width for out, width in (e.shape for e in chosen.layers.values())
    )
    assert held <= chosen.kept * dense + 1e-6
    rounded_up = 2 * itemsize * len(chosen.layers)
    assert held >= chosen.kept * dense - rounded_up
    assert chosen.kept <= budget
    assert len(chosen.ranks) > 0 or given.bits == 4


@pytest.mark.slow
@needs_torchao
def test_four_bits_of_torchao_at_widths_its_kernel_reads(tmp_path):
    model, tokenizer = load("reference", dtype=torch.float32)
    recipe = recipe_for("python", QuantizationRecipe(4), 32, budget=0.12, layer="lowrank")
    recipe = recipe.with_changes(
        method="svd", hessian_averaging=replace(recipe.hessian_averaging, weight=0.0)
    )
    decomposition = factorize(model, tokenizer, recipe)
    chosen = plan(decomposition, recipe)
    smaller = quantize_factors(replace_layers(model, decomposition, chosen), chosen, recipe)
    ranks = {e["rank"] for e in smaller.config.quantization_config.layers.values()}
    assert ranks - {0}
    assert all(rank % 32 == 0 for rank in ranks)
    expected = logits(smaller)
    save_compressed(smaller, None, tmp_path / "out", smaller.config.quantization_config)
    assert torch.equal(logits(load(tmp_path / "out", dtype=torch.float32)[0]), expected)
    with pytest.raises(InputError, match=r"rank_multiple to quantization.*32"):
        recipe.with_changes(rank_multiple=2)


def test_eight_bits_lose_little_four_lose_more(text):
    model = TINY_MODELS["llama"]()
    losses = []
    recipe = recipe_for(text, None, budget=0.8)
    decomposition = factorize(model, tiny_tokenizer(), recipe)
    chosen = plan(decomposition, recipe)
    exact = logits(replace_layers(model, decomposition, chosen))
    for bits, expected in ((8, nullcontext()), (4, pytest.warns(match="--layer lowrank"))):
        one = recipe.with_changes(quantization=QuantizationRecipe(bits, "rtn"))
        with expected:
            smaller = quantize_factors(
                replace_layers(model, decomposition, chosen), chosen, one
            )
        losses.append(float((logits(smaller) - exact).norm() / exact.norm()))
    assert 0 < losses[0] < 0.02 < losses[1] < 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pivoted layers lose most")
@pytest.mark.parametrize("layer", ["lowrank", "pivoted"])
def test_the_whole_trip_rounds_in_the_metric_of_the_loss(layer, text):
    predicted = {}
    for backend in ("rtn", "gptq"):
        recipe = recipe_for(text, QuantizationRecipe(4, backend, 8), budget=0.1, layer=layer)
        result = compress(TINY_MODELS["llama"](), tiny_tokenizer(), recipe)
        predicted[backend] = result.plan.predicted_loss
        assert result.model.config.quantization_config.inner["base"] == backend
    assert predicted["gptq"] < predicted["rtn"]


def test_statistics_that_are_missing(text):
    recipe = recipe_for(text, QuantizationRecipe(4, "gptq", 8), layer="lowrank")
    with pytest.raises(InputError, match="needs calibration"):
        quantize_factors(
            TINY_MODELS["llama"](),
            Plan("svd", "uniform", "lowrank", 0.5, 0.5, None, {}),
            recipe,
        )
    with pytest.raises(InputError, match="cannot be combined"):
        recipe.with_changes(sharing=SharingRecipe("same_input"))


@pytest.mark.slow
def test_what_is_quantized_can_be_multiplied_back(text, tmp_path):
    recipe = recipe_for(text, QuantizationRecipe(8, "rtn"))
    _, smaller = made(TINY_MODELS["gqa"](), recipe)
    save_compressed(smaller, None, tmp_path / "out", smaller.config.quantization_config)
    export_dense(tmp_path / "out", tmp_path / "dense")
    found = logits(load(tmp_path / "dense", dtype=torch.float32)[0])
    torch.testing.assert_close(found, logits(smaller), atol=10 * DENSE_EXPORT_ABSOLUTE, rtol=0)
    export_self_contained(tmp_path / "out", tmp_path / "alone")
    [alone] = run(
        tmp_path, WITHOUT_SPECTRIM, [tmp_path / "alone"], trust_remote_code=True
    ).values()
    assert torch.equal(alone, logits(smaller))
    with pytest.raises(ModelError, match="quantized"):
        finetune(smaller, tiny_tokenizer(), FinetuneSettings(data=str(text)))


def test_layers_on_one_basis(text, tmp_path):
    sharing = SharingRecipe("same_input", accept="all")
    given = QuantizationRecipe(8, "rtn")
    _, smaller = made(TINY_MODELS["llama"](), recipe_for(text, given, sharing=sharing))
    save_compressed(smaller, None, tmp_path / "out", smaller.config.quantization_config)
    assert torch.equal(logits(load(tmp_path / "out")[0]), logits(smaller))


@pytest.mark.parametrize(
    "inner",
    [
        {"base": "rtn"},
        {"base": "nothing", "options": {}},
        {"base": "rtn", "options": {"bits": 99}},
        {"base": "rtn", "options": {"width": 3}},
        {"base": "rtn", "options": []},
    ],
)
def test_a_config_that_says_something_else(inner):
    with pytest.raises(CheckpointError, match="inner"):
        SpectrimConfig(inner=inner)


def test_recipes_that_do_not_go_together(text):
    given = QuantizationRecipe(8, "rtn")
    with pytest.raises(InputError, match="loss_optimal"):
        recipe_for(text, given, allocation="d_rank")
    with pytest.raises(InputError, match="plain matrices"):
        made(TINY_MODELS["llama"](), recipe_for(text, given, layer="sparse_dictionary"))
    needy = QuantizationRecipe(8, "rtn")
    object.__setattr__(needy, "backend", "wanda_2_4")
    with pytest.raises(InputError, match="options"):
        made(TINY_MODELS["llama"](), recipe_for(text, needy))
