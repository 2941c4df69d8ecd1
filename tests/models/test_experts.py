"""Split experts compute what the fused ones compute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedModel

from spectrim.errors import ModelError
from spectrim.models.experts import (
    ExpertCalls,
    SplitBatchedExperts,
    SplitExperts,
    fused_expert_names,
    split_expert_names,
    split_experts,
    stacked_weight_names,
)
from spectrim.models.targets import find_targets
from tests.families.configs import FAMILIES
from tests.tiny_models import tiny_llama, tiny_mixtral, tiny_moe, tiny_tokens
from tests.tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE


def tiny_gpt_oss() -> PreTrainedModel:
    """Interleaved gate and up, transposed and biased expert weights, attention sinks."""
    config = GptOssConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model


def family(name: str) -> PreTrainedModel:
    return next(family for family in FAMILIES if str(family) == name).build()


def tiny_llama4() -> PreTrainedModel:
    return family("llama4_text")


def tiny_longcat() -> PreTrainedModel:
    """Experts without weights that pass their tokens on."""
    return family("longcat_flash")


BUILDERS = {
    "moe": tiny_moe,
    "mixtral": tiny_mixtral,
    "gpt_oss": tiny_gpt_oss,
    "llama4": tiny_llama4,
}
builders = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


def is_transposed(model: nn.Module, name: str) -> bool:
    return bool(getattr(model.get_submodule(name), "is_transposed", False))


def pair(build, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    fused = build().to(dtype)
    if dtype == torch.float64:
        fused.set_experts_implementation("eager")
    for parameter in fused.parameters():
        if parameter.dim() == 3:
            parameter.data.mul_(8)  # experts large enough to matter in the logits
    split = copy.deepcopy(fused)
    split_experts(split, fused_expert_names(split))
    return fused, split


@builders
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_logits_are_the_fused_models(build, dtype):
    fused, split = pair(build, dtype)
    assert not fused_expert_names(split)
    a, b = fused(tiny_tokens(3, 20)).logits, split(tiny_tokens(3, 20)).logits
    relative = FLOAT64_RELATIVE if dtype == torch.float64 else FLOAT32_RELATIVE
    assert float((a - b).norm()) <= relative * float(a.norm())


@pytest.mark.parametrize("build", [tiny_moe, tiny_mixtral])  # a bias may be fused into GPT-OSS
@torch.no_grad()
def test_logits_are_bit_by_bit_those_of_the_plain_loop(build):
    fused, split = pair(build, torch.float32)
    fused.set_experts_implementation("eager")
    assert torch.equal(fused(tiny_tokens(3, 20)).logits, split(tiny_tokens(3, 20)).logits)


@builders
@pytest.mark.parametrize("training", [False, True])
def test_mode_and_flags_are_kept(build, training):
    model = build().train(training)
    for parameter in model.parameters():
        parameter.requires_grad_(training)
    split_experts(model, fused_expert_names(model))
    assert all(module.training == training for module in model.modules())
    assert all(p.requires_grad == training for p in model.parameters())


@builders
def test_gradients_reach_every_used_expert(build):
    fused, split = pair(build, torch.float64)
    for model in (fused, split):
        model(input_ids=tiny_tokens(4, 20), labels=tiny_tokens(4, 20)).loss.backward()
    embedding = [m.get_input_embeddings().weight.grad for m in (fused, split)]
    assert torch.allclose(*embedding, rtol=1e-6, atol=1e-10)
    for name in fused_expert_names(fused):
        whole = fused.get_submodule(name).down_proj.grad
        children = split.get_submodule(name).down
        for expert, child in enumerate(children):
            if child.weight.grad is None:
                assert not whole[expert].any()
                continue
            gradient = child.weight.grad
            if gradient.shape != whole[expert].shape or is_transposed(fused, name):
                gradient = gradient.T
            assert torch.allclose(gradient, whole[expert], rtol=1e-6, atol=1e-10)


@builders
def test_weights_are_kept_once(build):
    fused, split = pair(build, torch.float32)
    assert sum(p.numel() for p in split.parameters()) == sum(
        p.numel() for p in fused.parameters()
    )
    names = fused_expert_names(fused)
    assert len(names) == 2
    for name in names:
        module = split.get_submodule(name)
        assert isinstance(module, SplitExperts)
        assert len(module.up) == len(module.down) == 4
        assert all(type(child) is nn.Linear for child in (*module.up, *module.down))
        assert {f"{name}.up.0", f"{name}.down.3"} <= {t.name for t in find_targets(split)}


@builders
@torch.no_grad()
def test_the_split_model_is_independent_of_the_fused(build):
    fused = build()
    names = fused_expert_names(fused)
    weight = fused.get_submodule(names[0]).down_proj
    before = weight.clone()
    split_experts(fused, names)
    fused.get_submodule(names[0]).down[0].weight.zero_()
    assert torch.equal(weight, before)


def test_what_is_not_fused_is_an_error():
    model = tiny_llama()
    assert fused_expert_names(model) == []
    with pytest.raises(ModelError, match="expected fused experts"):
        split_experts(model, ["model.layers.0.mlp"])


def test_experts_in_a_batch_are_split():
    """Llama 4 weights the tokens before its experts, which get all of them together."""
    _, split = pair(tiny_llama4, torch.float32)
    assert all(
        isinstance(split.get_submodule(name), SplitBatchedExperts)
        for name in split_expert_names(split)
    )
    assert len(split_expert_names(split)) == 2


@torch.no_grad()
def test_experts_that_pass_their_tokens_on():
    fused, split = pair(tiny_longcat, torch.float32)
    a, b = fused(tiny_tokens(3, 20)).logits, split(tiny_tokens(3, 20)).logits
    assert float((a - b).norm()) <= FLOAT32_RELATIVE * float(a.norm())
    experts = split.get_submodule(split_expert_names(split)[0])
    assert len(experts.up) == len(experts.down) == 4


class Unknown(nn.Module):
    """Experts with a norm of their own between the two products."""

    def __init__(self):
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(2, 8, 6))
        self.down_proj = nn.Parameter(torch.randn(2, 6, 8))
        self.act_fn = nn.SiLU()

    def forward(self, hidden_states, top_k_index, top_k_weights):
        up = nn.functional.layer_norm(hidden_states @ self.up_proj[0].T, (8,))
        return self.act_fn(up) @ self.down_proj[0].T * top_k_weights.sum(-1, keepdim=True)


def test_experts_that_compute_something_else_are_not_split():
    experts = Unknown()
    model = nn.ModuleDict({"experts": experts})
    calls = ExpertCalls(model)
    with calls.recorded():
        experts(torch.randn(5, 6), torch.zeros(5, 1, dtype=torch.long), torch.ones(5, 1))
    assert fused_expert_names(model) == ["experts"]
    assert calls.names_that_split() == []


def test_a_third_stack_of_matrices_is_no_known_layout():
    experts = Unknown()
    experts.gate_proj = nn.Parameter(torch.randn(2, 8, 6))
    model = nn.ModuleDict({"experts": experts})
    assert fused_expert_names(model) == []
    assert stacked_weight_names(model) == ["experts"]
    with pytest.raises(ModelError, match="expected fused experts"):
        split_experts(model, ["experts"])
