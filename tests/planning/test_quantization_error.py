"""What fewer bits add to the loss: the quadratic model of the rounding error itself."""

from __future__ import annotations

import pytest
import torch

from spectrim.errors import InputError
from spectrim.layers.quantized import QUANTIZERS
from spectrim.models.linear import get_weight
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.plan import decompose, factorize, plan
from spectrim.pipeline.recipe import QuantizationRecipe, SharingRecipe
from spectrim.planning import plan_for_loss
from spectrim.planning.quantization_error import with_rounding
from spectrim.statistics import LayerProblem
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.tolerances import LOSS_RELATIVE

FOUR = QuantizationRecipe(4, "rtn", 8)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A model, its calibration, and its decomposition."""
    text = text_file(tmp_path_factory.mktemp("text") / "text.txt")
    recipe = small_recipe(text, quantization=FOUR, layer="lowrank", budget=0.3)
    model = tiny_llama()
    calibration = calibrate(model, tiny_tokenizer(), recipe)
    return model, calibration, decompose(model, calibration, recipe), recipe


def test_a_dense_layer_costs_its_rounding(found):
    model, calibration, decomposition, recipe = found
    known = with_rounding(calibration, decomposition, recipe.planning)
    name = next(iter(known.shapes))
    weight = get_weight(model.get_submodule(name)).detach()
    options = QUANTIZERS.options("rtn", FOUR.options)
    problem = LayerProblem(name, weight, None, None)
    error = QUANTIZERS.get("rtn").compress(problem, options).dense()[0] - weight.double()
    statistics = calibration.layer(name)
    covariances = statistics["gradient_covariance"], statistics["input_covariance"]
    expected = 0.5 * float(torch.trace(covariances[0] @ error @ covariances[1] @ error.T))
    # the factors' product is the weight up to rounding, which moves codes next to a border
    assert float(known.rounding[name][0]) == pytest.approx(expected, rel=0.05)


def test_fewer_bits_and_multiplied_rounding_cost_more(found):
    _, calibration, decomposition, recipe = found
    total = {}
    for layer in ("lowrank", "pivoted"):
        for bits in (8, 4):
            given = QuantizationRecipe(bits, "rtn", 8)
            one = recipe.with_changes(quantization=given, layer=layer)
            rounding = with_rounding(calibration, decomposition, one.planning).rounding
            total[layer, bits] = sum(float(losses[1:].sum()) for losses in rounding.values())
            assert all(bool((losses >= 0).all()) for losses in rounding.values())
    assert total["lowrank", 8] < 0.05 * total["lowrank", 4]
    assert total["pivoted", 4] > 1.1 * total["lowrank", 4]


def test_a_plan_counts_it_once_for_its_own_recipe(found):
    _, calibration, decomposition, recipe = found
    known = with_rounding(calibration, decomposition, recipe.planning)
    chosen = plan(known, recipe)
    for name, layer in chosen.layers.items():
        rank = layer.rank or 0
        cut = float(known.curves[name][rank]) if rank else 0.0
        added = float(known.rounding[name][rank])
        assert added > 0
        assert layer.predicted_loss == pytest.approx(cut + added, rel=LOSS_RELATIVE)
    exact = plan(known, recipe.with_changes(quantization=None, budget=0.9))
    for name, layer in exact.layers.items():
        if layer.rank is None:
            assert layer.predicted_loss == 0, name
        else:
            assert layer.predicted_loss == float(known.curves[name][layer.rank])
    eight = plan(known, recipe.with_changes(quantization=QuantizationRecipe(8, "rtn")))
    dense = [layer for layer in eight.layers.values() if layer.rank is None]
    assert all(layer.predicted_loss == 0 for layer in dense), "rounding of other bits"


def test_a_target_below_the_rounding(found):
    _, calibration, decomposition, recipe = found
    known = with_rounding(calibration, decomposition, recipe.planning)
    with pytest.raises(InputError, match="rounding alone"):
        plan_for_loss(known, recipe.planning, 1e-9)


def test_layers_on_one_basis_and_the_whole_pipeline(tmp_path):
    text = text_file(tmp_path / "text.txt")
    sharing = SharingRecipe("same_input", accept="all")
    recipe = small_recipe(text, quantization=FOUR, layer="lowrank", sharing=sharing, budget=0.3)
    known = factorize(tiny_llama(), tiny_tokenizer(), recipe)
    assert known.groups
    assert known.rounding.keys() == known.shapes.keys()
    assert all(float(losses.min()) > 0 for losses in known.rounding.values())
