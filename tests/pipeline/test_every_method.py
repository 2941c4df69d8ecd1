"""Every method and every allocation through the whole pipeline, on layers with biases."""

from __future__ import annotations

import pytest
import torch

import spectrim
from spectrim.allocation import ALLOCATORS
from spectrim.decompositions import DECOMPOSITIONS
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_gpt2, tiny_tokenizer, tiny_tokens


def compressed(tmp_path, **changes):
    model = tiny_gpt2().requires_grad_(True)
    recipe = small_recipe(text_file(tmp_path / "text.txt"), **changes)
    decomposition = spectrim.factorize(model, tiny_tokenizer(), recipe)
    plan = spectrim.plan(decomposition, recipe)
    return plan, spectrim.replace_layers(model, decomposition, plan)


def check(plan, model):
    assert plan.kept <= plan.budget
    assert plan.predicted_loss > 0
    assert torch.isfinite(model(tiny_tokens(2, 8, seed=0)).logits).all()


@pytest.mark.few(5)
@pytest.mark.parametrize("method", DECOMPOSITIONS.names())
def test_every_method(tmp_path, method):
    check(*compressed(tmp_path, method=method))


@pytest.mark.few(4)
@pytest.mark.parametrize("allocation", ALLOCATORS.names())
def test_every_allocation(tmp_path, allocation):
    check(*compressed(tmp_path, allocation=allocation))
