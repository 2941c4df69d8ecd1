"""Refinements of layers on one basis: they go on sharing it, and it is trained once."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from spectrim.layers.shared_basis import SharedBasisLinear
from spectrim.models.linear import get_weight
from spectrim.models.replace import share_basis, shared_bases
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import balanced_parameters
from tests.contracts.test_refinements import tokens
from tests.tiny_models import tiny_llama, tiny_tokens
from tests.tolerances import FLOAT32_RELATIVE

ACROSS = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
INSIDE = [f"model.layers.1.mlp.{x}_proj" for x in ("gate", "up")]
OPTIONS = {"block_distillation": {"epochs": 2}, "distillation": {"tokens": 256}}


def shared_model() -> PreTrainedModel:
    """One group across the blocks and one inside the second."""
    model = copy.deepcopy(tiny_llama())
    for names in (ACROSS, INSIDE):
        weights = [get_weight(model.get_submodule(name)).detach().double() for name in names]
        u, s, v = torch.linalg.svd(torch.cat(weights), full_matrices=False)
        lefts = (u[:, :8] * s[:8]).split([len(weight) for weight in weights])
        share_basis(model, dict(zip(names, lefts, strict=True)), v[:8], dict.fromkeys(names))
    return model


def test_training_form_keeps_sharing_and_computes_the_same():
    model = shared_model()
    groups, layers = shared_bases(model), dict(model.named_modules())
    with torch.no_grad():
        before = model(tiny_tokens()).logits
        with balanced_parameters(model) as parameters:
            inside = model(tiny_tokens()).logits
            assert shared_bases(model) == groups
            bases = [name for name in parameters if "right" in name]
            assert bases == [f"{names[0]}.right.weight" for names in (ACROSS, INSIDE)]
            for names in (ACROSS, INSIDE):
                owner = model.get_submodule(names[0])
                lefts = [model.get_submodule(name).left.weight for name in names]
                gram = sum(left.T @ left for left in lefts)
                other = owner.right.weight @ owner.right.weight.T
                assert torch.allclose(gram, other, atol=10 * FLOAT32_RELATIVE)
        after = model(tiny_tokens()).logits
    scale = float(before.abs().max())
    assert float((inside - before).abs().max()) < 10 * FLOAT32_RELATIVE * scale
    assert float((after - before).abs().max()) < 10 * FLOAT32_RELATIVE * scale
    assert layers.keys() == dict(model.named_modules()).keys()


def test_an_error_puts_the_shared_layers_back():
    model = shared_model()
    before = {n: m for n, m in model.named_modules() if isinstance(m, SharedBasisLinear)}
    with pytest.raises(RuntimeError), balanced_parameters(model):
        raise RuntimeError
    assert all(model.get_submodule(name) is layer for name, layer in before.items())


@pytest.mark.parametrize("name", OPTIONS)
def test_refining_keeps_sharing(name):
    model = shared_model()
    groups = shared_bases(model)
    spaces = {n: row_space(model, n) for n in groups}
    options = REFINEMENTS.options(name, OPTIONS[name])
    inputs = TrainingInputs(tiny_llama(), model, tokens())
    REFINEMENTS.get(name).refine(inputs, options, RunContext())
    assert shared_bases(model) == groups
    moved = {n: float((row_space(model, n) - spaces[n]).norm()) for n in groups}
    assert moved[INSIDE[0]] > 1e-3
    assert (moved[ACROSS[0]] > 1e-3) == (name == "distillation")


def row_space(model: PreTrainedModel, owner: str) -> torch.Tensor:
    """The projector on the basis, whatever its coordinates."""
    basis = torch.linalg.qr(model.get_submodule(owner).right.weight.detach().double().T).Q
    return basis @ basis.T
