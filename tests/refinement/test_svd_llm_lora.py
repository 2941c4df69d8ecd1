"""lora: what it trains, and what stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrim.errors import InputError, ModelError
from spectrim.models.replace import factored_layers
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.refinement.svd_llm_lora import LowRankUpdate, Options
from spectrim.runtime.context import RunContext
from tests.contracts.test_refinements import case, state, tokens
from tests.tiny_models import tiny_llama
from tests.tolerances import FLOAT32_RELATIVE


def test_merged_is_what_was_trained():
    generator = torch.Generator().manual_seed(0)
    factor = nn.Linear(6, 9)
    x = torch.randn(5, 6, generator=generator)
    update = LowRankUpdate(factor, Options(rank=3, alpha=6.0), generator)
    assert torch.equal(update(x), factor(x))
    with torch.no_grad():
        update.up.copy_(torch.randn(9, 3, generator=generator))
        by_hand = factor(x) + 2.0 * (x @ update.down.T @ update.up.T)
        assert torch.allclose(update(x), by_hand, rtol=FLOAT32_RELATIVE, atol=1e-6)
        assert torch.allclose(update.merged()(x), by_hand, rtol=FLOAT32_RELATIVE, atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_only_the_factors_change_and_by_a_low_rank(kind):
    given = case("llama", kind)
    before = {name: layer.dense()[0] for name, layer in factored_layers(given.compressed)}
    ranks = {name: layer.rank for name, layer in factored_layers(given.compressed)}
    rest = state(given.compressed)
    given.refine("svd_llm_lora", rank=1)
    after = dict(factored_layers(given.compressed))
    assert {name: layer.rank for name, layer in after.items()} == ranks
    for name, layer in after.items():
        values = torch.linalg.svdvals(layer.dense()[0] - before[name])
        assert values[0] > 0
        assert values[2] < 10 * FLOAT32_RELATIVE * torch.linalg.svdvals(before[name])[0]
    inside = tuple(name + "." for name in after)
    for name, tensor in state(given.compressed).items():
        assert name.startswith(inside) or torch.equal(tensor, rest[name])


def test_both_factors_are_trained_one_after_the_other():
    stages = case("llama").refine("svd_llm_lora", epochs=2)
    assert list(stages) == ["left", "right"]
    assert [len(losses) for losses in stages.values()] == [4, 4]


def test_a_model_without_factors_is_refused():
    model = tiny_llama()
    options = REFINEMENTS.options("svd_llm_lora", {})
    with pytest.raises(ModelError, match="compress it first"):
        REFINEMENTS.get("svd_llm_lora").refine(
            TrainingInputs(model, model, tokens()), options, RunContext()
        )


@pytest.mark.parametrize("name", ["rank", "epochs", "alpha", "learning_rate"])
def test_wrong_options_are_named(name):
    with pytest.raises(InputError, match=name):
        REFINEMENTS.options("svd_llm_lora", {name: 0})
