"""Compression errors of a text against those of the calibration, from dense products."""

from __future__ import annotations

import pytest
import torch

from spectrim.data import BlockSettings, document_blocks, token_blocks
from spectrim.errors import InputError
from spectrim.linalg.spd import bures_wasserstein_distance
from spectrim.linalg.spectrum import tail_energy
from spectrim.pipeline.compression_error import compression_errors, own_calibration
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe, Recipe
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import make_plan
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer
from tests.tolerances import FLOAT32_RELATIVE

NAMES = ("llama", "qwen2_bias", "moe", "gpt2")


def recipe_for(text, **changes) -> Recipe:
    plain = {
        "hessian_averaging": HessianAveragingRecipe(weight=0),
        "probe": ProbeRecipe(per_layer=False, joint=False),
    }
    return small_recipe(text, **(plain | changes))


def made(name: str, text, **changes):
    """Original, compressed model, calibration, decomposition and plan."""
    recipe, model = recipe_for(text, **changes), TINY_MODELS[name]()
    calibration = own_calibration(model, tiny_tokenizer(), recipe)
    decomposition = decompose(model, calibration, recipe)
    plan = make_plan(decomposition, recipe.planning)
    smaller = replace_layers(model, decomposition, plan)
    return model, smaller, calibration, decomposition, plan, recipe


@pytest.fixture
def text(tmp_path):
    return text_file(tmp_path / "text.txt")


@pytest.mark.parametrize("name", NAMES)
def test_the_calibration_text_has_ratio_one_in_every_layer(text, name):
    model, smaller, calibration, _, _, recipe = made(name, text)
    blocks = calibration_blocks(model, tiny_tokenizer(), recipe)
    found = compression_errors(model, smaller, calibration, blocks)
    assert found.score == pytest.approx(1.0, rel=1e-3)
    for layer in found.layers:
        assert layer.ratio == pytest.approx(1.0, rel=1e-3), layer
        assert layer.drift < 1e-3
    assert sum(d.tokens for d in found.documents) == calibration.tokens
    weighted = sum(d.tokens * d.score for d in found.documents) / calibration.tokens
    assert weighted == pytest.approx(found.score, rel=FLOAT32_RELATIVE)


def test_means_are_half_the_tail_energies(text):
    model, smaller, calibration, decomposition, plan, recipe = made(
        "llama", text, method_options={"damping": 1e-9}
    )
    blocks = calibration_blocks(model, tiny_tokenizer(), recipe)
    found = compression_errors(model, smaller, calibration, blocks)
    assert {layer.name for layer in found.layers} == {
        name for name, layer in plan.layers.items() if layer.rank
    }
    for layer in found.layers:
        rank = plan.layers[layer.name].rank
        tail = float(tail_energy(decomposition.factors[layer.name].spectrum)[rank])
        assert layer.calibrated == pytest.approx(0.5 * tail, rel=1e-3)


def test_biases_that_absorb_errors_are_part_of_them(text):
    model, smaller, calibration, _, _, recipe = made("qwen2_bias", text, method="obd_bias")
    assert "input_mean" in calibration.states
    blocks = calibration_blocks(model, tiny_tokenizer(), recipe)
    found = compression_errors(model, smaller, calibration, blocks)
    for layer in found.layers:
        assert layer.ratio == pytest.approx(1.0, rel=1e-2), layer


def test_errors_of_another_text_are_dense_products(text, tmp_path):
    model, smaller, calibration, _, _, _ = made("llama", text)
    other = text_file(tmp_path / "other.txt", seed=7)
    settings = BlockSettings(length=24, max_tokens=400)
    blocks = document_blocks(str(other), tiny_tokenizer(), settings)
    found = compression_errors(model, smaller, calibration, blocks)
    assert len(found.documents) == blocks.documents
    layer = next(layer for layer in found.layers if layer.name.endswith("q_proj"))
    inputs: list[torch.Tensor] = []
    module = model.get_submodule(layer.name)
    with_hook = module.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with torch.no_grad():
        given = {"input_ids": blocks.ids, "attention_mask": blocks.mask.long()}
        logits, reduced = model(**given).logits, smaller(**given).logits
    with_hook.remove()
    x = inputs[0][blocks.mask].detach().double()
    known = calibration.layer(layer.name)
    dense = smaller.get_submodule(layer.name).dense()[0].double()
    change = x @ (module.weight.double() - dense).detach().T
    expected = torch.einsum("ti,ij,tj->t", change, known["gradient_covariance"], change)
    assert layer.found == pytest.approx(0.5 * float(expected.mean()), rel=1e-3)
    covariance = x.T @ x / len(x)
    distance = bures_wasserstein_distance(known["input_covariance"], covariance)
    scale = float(known["input_covariance"].trace()) ** 0.5
    assert layer.drift == pytest.approx(float(distance) / scale, rel=1e-3)
    rows = blocks.document_of_row == 0
    labels = blocks.ids[rows, 1:, None]
    gap = logits[rows, :-1].log_softmax(-1) - reduced[rows, :-1].log_softmax(-1)
    counted = blocks.mask[rows, 1:] if blocks.scored is None else blocks.scored[rows, 1:]
    increase = gap.gather(2, labels)[..., 0][counted].double().mean()
    assert found.documents[0].loss_increase == pytest.approx(float(increase), abs=1e-5)
    assert -1 <= found.token_correlation <= 1


def test_a_dense_model_has_no_errors(text):
    model, _, calibration, *_ = made("llama", text)
    blocks = token_blocks(str(text), tiny_tokenizer(), BlockSettings(2, 24))
    with pytest.raises(InputError, match="no compressed layer"):
        compression_errors(model, tiny_llama(), calibration, blocks)
