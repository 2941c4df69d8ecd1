"""Which layers are compressed, on every tiny model, and how they are replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spectrim.errors import ModelError
from spectrim.layers import LAYERS, FactoredLinear, layer_class
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.linear import get_bias, get_shape, get_weight, is_linear, set_weight
from spectrim.models.replace import factored_layers, replace_layer
from spectrim.models.targets import decoder_blocks, find_targets
from tests.tiny_models import TINY_MODELS, tiny_gpt2, tiny_llama, tiny_moe, tiny_tokens
from tests.tolerances import DENSE_EXPORT_ABSOLUTE

models = pytest.mark.parametrize("name", sorted(TINY_MODELS))
PER_BLOCK = {"gpt2": 4, "llama": 7, "gqa": 7, "tied": 7, "qwen2_bias": 7}


@models
def test_targets_are_the_linear_layers_of_the_blocks(name):
    model = TINY_MODELS[name]()
    split_experts(model, fused_expert_names(model))
    targets = find_targets(model)
    names = [target.name for target in targets]
    assert len(decoder_blocks(model)) == 2
    assert len(set(names)) == len(names)
    assert len(names) == 2 * PER_BLOCK.get(name, 4 + 4 * 2)
    embeddings = {model.get_input_embeddings(), model.get_output_embeddings()}
    for target in targets:
        module = model.get_submodule(target.name)
        assert is_linear(module)
        assert module not in embeddings
        assert target.shape == get_shape(module)
        assert target.weights == get_weight(module).numel()
        assert any(target.name.startswith(block + ".") for block, _ in decoder_blocks(model))


@models
def test_targets_come_in_model_order(name):
    model = TINY_MODELS[name]()
    order = [n for n, _ in model.named_modules()]
    positions = [order.index(target.name) for target in find_targets(model)]
    assert positions == sorted(positions)


@models
def test_the_output_embedding_only_when_asked_for(name):
    model = TINY_MODELS[name]()
    assert not any("lm_head" in target.name for target in find_targets(model))
    assert [t.name for t in find_targets(model, include=["lm_head"])] == ["lm_head"]
    both = [t.name for t in find_targets(model, include=["lm_head", "h|layers"])]
    assert len(both) == 1 + len(find_targets(model))


def test_patterns_select_and_exclude():
    model = tiny_llama()
    names = [t.name for t in find_targets(model, include=[r"layers\.0\..*_proj"])]
    assert len(names) == 7
    assert all("layers.0." in name for name in names)
    names = [t.name for t in find_targets(model, exclude=["down_proj", "layers.1"])]
    assert len(names) == 6


@pytest.mark.parametrize(
    ("include", "exclude", "words"),
    [
        (["no_such_layer"], [], "matches no linear layer"),
        ([], ["no_such_layer"], "matches no linear layer"),
        (["q_proj", "no_such_layer"], [], "no_such_layer"),
        ([], ["proj"], "none left"),
        (["("], [], "regular expression"),
        ([], ["*"], "regular expression"),
    ],
)
def test_patterns_that_cannot_be_meant(include, exclude, words):
    with pytest.raises(ModelError, match=words):
        find_targets(tiny_llama(), include, exclude)


def test_a_plain_module_gives_all_its_linear_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2)))
    assert [t.name for t in find_targets(model)] == ["0", "2.0"]
    with pytest.raises(ModelError, match="no linear layer"):
        find_targets(nn.ReLU())


def test_without_blocks_the_output_embedding_is_left_out():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 9)

        def get_output_embeddings(self):
            return self.head

    assert [t.name for t in find_targets(Small())] == ["inner"]
    assert [t.name for t in find_targets(Small(), include=["head"])] == ["head"]


def test_conv1d_is_seen_as_out_by_in():
    module = tiny_gpt2().get_submodule("transformer.h.0.mlp.c_fc")
    assert get_shape(module) == (128, 32)
    x = torch.randn(3, 32)
    assert torch.allclose(x @ get_weight(module).T + get_bias(module), module(x), atol=1e-6)
    weight = torch.randn(128, 32)
    set_weight(module, weight)
    assert torch.equal(get_weight(module), weight)


@pytest.mark.few(15)
@models
@pytest.mark.parametrize("kind", LAYERS.names())
def test_full_rank_replacement_keeps_the_logits(name, kind):
    model = TINY_MODELS[name]()
    split_experts(model, fused_expert_names(model))
    twin = copy.deepcopy(model)
    targets = find_targets(twin)
    for target in targets:
        module = twin.get_submodule(target.name)
        weight = get_weight(module).detach().double()
        tall = weight.shape[0] > weight.shape[1] and layer_class(kind).LOSSLESS
        left = weight if tall else torch.eye(len(weight)).double()
        right = torch.eye(weight.shape[1]).double() if tall else weight
        if kind == "pivoted" and not tall:
            continue
        layer = layer_class(kind).from_factors(left, right, get_bias(module))
        replace_layer(twin, target.name, layer)
    replaced = dict(factored_layers(twin))
    assert replaced
    for name_of, layer in replaced.items():
        assert isinstance(layer, FactoredLinear)
        assert not layer.training
        assert {p.dtype for p in layer.parameters()} == {torch.float32}
        assert name_of not in [t.name for t in _targets_or_none(twin)]
    with torch.no_grad():
        difference = (twin(tiny_tokens()).logits - model(tiny_tokens()).logits).abs().max()
    assert float(difference) <= 2 * DENSE_EXPORT_ABSOLUTE


def _targets_or_none(model):
    try:
        return find_targets(model)
    except ModelError:
        return []


@pytest.mark.parametrize("trained", [False, True])
def test_replacement_takes_dtype_mode_and_flags(trained):
    model = tiny_llama().to(torch.bfloat16).train(trained)
    for parameter in model.parameters():
        parameter.requires_grad_(trained)
    left, right = torch.randn(32, 4), torch.randn(4, 32)
    name = "model.layers.0.self_attn.q_proj"
    replace_layer(model, name, layer_class("lowrank").from_factors(left, right, None))
    layer = model.get_submodule(name)
    assert all(module.training == trained for module in layer.modules())
    assert all(p.dtype == torch.bfloat16 for p in layer.parameters())
    assert all(p.requires_grad == trained for p in layer.parameters())


def test_the_router_is_no_target():
    model = tiny_moe()
    split_experts(model, fused_expert_names(model))
    assert not any(t.name.endswith("mlp.gate") for t in find_targets(model))
