"""Artefacts of format 1 (version 0.1.0) still load, and still give the same numbers.

The files in `v1/` are never written again. What a later version reads differently is converted
when it is loaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import spectrim
from spectrim.errors import InputError
from spectrim.pipeline.presets import load_recipe
from spectrim.planning import Decomposition, load_plan
from spectrim.statistics import load_calibration
from tests.tolerances import BFLOAT16_RELATIVE, FLOAT64_RELATIVE, FROZEN_ABSOLUTE

replace_layers = spectrim.replace_layers
decompose = spectrim.decompose
make_plan = spectrim.plan
load = spectrim.load

V1 = Path(__file__).parent / "v1"
EXPECTED = load_file(V1 / "expected.safetensors")
CHECKPOINTS = sorted(path.name for path in (V1 / "checkpoints").iterdir())
RECIPES = sorted(path.name for path in V1.glob("recipe_*.yaml"))
CALIBRATIONS = ("full", "through_weight", "low_rank", "blocks")
DECOMPOSITIONS = {
    "plain": "loss_optimal",
    "offset_signed": "zero_sum",
    "groups": "loss_optimal",
}
"""With the allocation that their plans were made by."""


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(EXPECTED["ids"]).logits.float()


def check_logits(model: nn.Module, name: str) -> None:
    half = BFLOAT16_RELATIVE * float(EXPECTED[name].abs().max())
    error = float((logits(model) - EXPECTED[name]).abs().max())
    assert error <= (half if name.endswith("bfloat16") else FROZEN_ABSOLUTE)


def test_nothing_is_missing():
    assert len(CHECKPOINTS) == 16
    assert len(RECIPES) == 5


@pytest.mark.few(8)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_gives_the_same_logits(name):
    directory = V1 / "checkpoints" / name
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values())
    check_logits(model, name)
    assert (logits(model) - EXPECTED["dense"]).abs().max() > 100 * FROZEN_ABSOLUTE
    assert torch.equal(logits(load(directory)[0]), logits(model))


@pytest.mark.few(4)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_is_saved_again(name, tmp_path):
    model, _ = load(V1 / "checkpoints" / name)
    spectrim.save(model, None, str(tmp_path / "again"))
    assert torch.equal(logits(load(tmp_path / "again")[0]), logits(model))


def test_self_contained_export_gives_the_same_logits(tmp_path, monkeypatch):
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    model = AutoModelForCausalLM.from_pretrained(V1 / "self_contained", trust_remote_code=True)
    assert not type(model).__module__.startswith("spectrim")
    check_logits(model, "lowrank")


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_calibration_gives_the_same_spectra(name):
    calibration = load_calibration(V1 / f"calibration_{name}.safetensors")
    model, _ = load(V1 / "dense")
    decomposition = decompose(model, calibration)
    expected = {
        key.partition("|")[2]: spectrum
        for key, spectrum in EXPECTED.items()
        if key.startswith(f"{name}|")
    }
    assert len(expected) == 7
    assert decomposition.factors.keys() == expected.keys()
    for layer, spectrum in expected.items():
        error = (decomposition.spectrum(layer) - spectrum).abs().max() / spectrum.max()
        assert error < FLOAT64_RELATIVE


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_decomposition_has_every_tensor(name):
    path = V1 / f"decomposition_{name}.safetensors"
    decomposition, stored = Decomposition.load(path), load_file(path)
    for layer, (rows, columns) in decomposition.shapes.items():
        assert decomposition.factors[layer].weight(min(rows, columns)).shape == (rows, columns)
        assert torch.equal(decomposition.spectrum(layer), stored[f"{layer}|spectrum"])
        assert torch.equal(decomposition.curves[layer], stored[f"{layer}|curve"])
    assert sum(len(members) for members in decomposition.groups.values()) == (
        10 if name == "groups" else 0
    )


@pytest.mark.parametrize("name", ["plain", "groups"])
def test_decomposition_gives_the_same_plan(name):
    plan = load_plan(V1 / f"plan_{name}.yaml")
    decomposition = Decomposition.load(V1 / f"decomposition_{name}.safetensors")
    again = make_plan(decomposition, spectrim.Recipe(budget=plan.budget, layer=plan.layer))
    assert again.ranks == plan.ranks
    assert again.predicted_loss == pytest.approx(plan.predicted_loss, rel=FLOAT64_RELATIVE)
    assert again.kept == pytest.approx(plan.kept, rel=FLOAT64_RELATIVE)


@pytest.mark.parametrize("name", ["plain", "offset_signed"])
def test_decomposition_and_plan_give_the_same_model(name):
    model, _ = load(V1 / "dense")
    check_logits(model, "dense")
    decomposition = Decomposition.load(V1 / f"decomposition_{name}.safetensors")
    plan = load_plan(V1 / f"plan_{name}.yaml")
    check_logits(replace_layers(model, decomposition, plan), f"plan_{name}")


@pytest.mark.parametrize("name", [*DECOMPOSITIONS, "compress"])
def test_plan_has_every_layer(name):
    path = V1 / f"plan_{name}.yaml"
    plan, stored = load_plan(path), yaml.safe_load(path.read_text())
    ranks = {layer: entry["rank"] for layer, entry in stored["layers"].items()}
    assert {layer: entry.rank for layer, entry in plan.layers.items()} == ranks
    assert (plan.budget, plan.layer) == (stored["budget"], stored["layer"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_format_1_ends_in_one_line_with_the_new_words(name):
    with pytest.raises(
        InputError, match=r"is now named .calibration\.covariance_bytes"
    ) as caught:
        load_recipe(str(V1 / name))
    assert "\n" not in str(caught.value)
