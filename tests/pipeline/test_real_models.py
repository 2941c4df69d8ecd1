"""In small on a trained model: the order of methods that the whole library is about."""

from __future__ import annotations

import math

import pytest
import torch

from spectrim.checkpoint import load
from spectrim.data import BlockSettings
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.plan import factorize, plan, probe_curves
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
)
from spectrim.pipeline.replace import replace_layers
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.shared_assets import shared_data, shared_model

pytestmark = pytest.mark.slow

SEQUENCES = 32
HELD_OUT = BlockSettings(length=256, max_tokens=8_000, keep_tail=True)
BUDGET = 0.6


@pytest.fixture(scope="module")
def subject():
    return load(shared_model("stories260K"), dtype=torch.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    return Cache(tmp_path_factory.mktemp("kept"))


def recipe_of(method: str, allocation: str, layer: str) -> Recipe:
    return Recipe(
        method=method,
        allocation=allocation,
        layer=layer,
        budget=BUDGET,
        calibration=CalibrationRecipe(
            data=str(shared_data("tinystories_sample", "train.txt")),
            sequences=SEQUENCES,
            length=256,
        ),
        hessian_averaging=HessianAveragingRecipe(weight=0.5 if method == "obd" else 0),
        probe=ProbeRecipe(per_layer=False, joint=False),
    )


def loss_of(subject, decomposition, recipe: Recipe) -> float:
    model, tokenizer = subject
    smaller = replace_layers(model, decomposition, plan(decomposition, recipe))
    text = str(shared_data("tinystories_sample", "valid.txt"))
    return math.log(evaluate(smaller, tokenizer, text, HELD_OUT)["perplexity"])


def test_each_idea_lowers_the_perplexity(subject, cache):
    losses = {}
    for choice in (
        ("svd", "uniform", "lowrank"),
        ("svd_llm", "uniform", "lowrank"),
        ("obd", "uniform", "lowrank"),
        ("obd", "loss_optimal", "lowrank"),
        ("obd", "loss_optimal", "pivoted"),
    ):
        recipe = recipe_of(*choice)
        decomposition = factorize(*subject, recipe, RunContext(cache))
        losses[choice] = loss_of(subject, decomposition, recipe)
    values = list(losses.values())
    assert values == sorted(values, reverse=True), losses
    assert values[0] - values[-1] > 1, losses


def test_corrected_curves_predict_better(subject, cache):
    """Of whole plans, the divergence on text that no correction has seen."""
    model, tokenizer = subject
    plain = factorize(*subject, recipe_of("obd", "loss_optimal", "pivoted"), RunContext(cache))
    asked = recipe_of("obd", "loss_optimal", "pivoted").with_changes(
        probe=ProbeRecipe(per_layer=False, joint=True, joint_tokens=2048)
    )
    corrected = probe_curves(model, tokenizer, plain, asked)
    text = str(shared_data("tinystories_sample", "valid.txt"))
    errors = {"plain": 0.0, "corrected": 0.0}
    for budget in (0.9, 0.7, 0.5):
        chosen = plan(plain, asked.with_changes(budget=budget))
        smaller = replace_layers(model, plain, chosen)
        figures = evaluate(smaller, tokenizer, text, HELD_OUT, reference=model)
        again = plan(corrected, asked.with_changes(budget=budget))
        assert again.ranks == chosen.ranks
        for name, predicted in (("plain", chosen), ("corrected", again)):
            errors[name] += abs(math.log(predicted.predicted_loss / figures["kl_divergence"]))
    assert errors["corrected"] < 0.5 * errors["plain"], errors


def test_measuring_layers_lowers_the_perplexity(subject, cache):
    plain = recipe_of("obd", "loss_optimal", "pivoted").with_changes(budget=0.8)
    measured = plain.with_changes(probe=ProbeRecipe(per_layer=True, joint=False, tokens=512))
    losses = [
        loss_of(subject, factorize(*subject, recipe, RunContext(cache)), recipe)
        for recipe in (plain, measured)
    ]
    assert losses[1] < losses[0], losses
