"""A fused model: same weights, same outputs, same file, and back."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import StaticCache

import spectrim
from spectrim import fuse, unfuse
from spectrim.checkpoint import SpectrimConfig, attach_config, load
from spectrim.errors import ModelError
from spectrim.inference import column_major
from spectrim.layers import layer_class
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.replace import factored_layers, replace_layer
from spectrim.models.targets import find_targets
from tests.tiny_models import TINY_MODELS, tiny_gqa, tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import BFLOAT16_RELATIVE, FLOAT32_RELATIVE, PRODUCT_ABSOLUTE

KINDS = ("lowrank", "pivoted", "sparse_dictionary")


@pytest.fixture(autouse=True, params=[0, 1024], ids=["packed", "columns"])
def rows_worth_turning(request, monkeypatch):
    """Tiny layers would all be stored by columns; with 0 only those with more outputs are."""
    monkeypatch.setattr(column_major, "SHORT", request.param)
    return request.param


def factored(model, kind="lowrank", rank=6):
    """Every target as a layer of `kind`; ranks differ from layer to layer."""
    split_experts(model, fused_expert_names(model))
    for number, target in enumerate(find_targets(model)):
        module = model.get_submodule(target.name)
        u, s, v = torch.linalg.svd(get_weight(module).detach().double(), full_matrices=False)
        own = rank + number % 3
        left, right = u[:, :own] * s[:own], v[:own]
        layer = layer_class(kind).from_factors(left, right, get_bias(module))
        replace_layer(model, target.name, layer)
    return model


def logits(model, tokens=None):
    with torch.no_grad():
        return model(tiny_tokens(4, 12) if tokens is None else tokens).logits


@pytest.mark.few(15)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_outputs_stay_and_come_back(name, kind):
    model = factored(TINY_MODELS[name](), kind)
    before = logits(model)
    fused = fuse(model)
    assert (logits(model) - before).abs().max() <= PRODUCT_ABSOLUTE
    unfuse(model)
    assert torch.equal(logits(model), before)
    assert set(fused.layers) == {n for n, _ in factored_layers(model)}


def test_the_output_embedding_lies_by_columns_with_the_table_that_is_tied_to_it():
    model = factored(TINY_MODELS["tied"]())
    before, head = logits(model), model.lm_head.weight
    fuse(model)
    assert head.stride() == (1, head.shape[0])
    assert model.lm_head.weight is head
    assert model.get_input_embeddings().weight is head
    torch.testing.assert_close(logits(model), before, rtol=0, atol=PRODUCT_ABSOLUTE)
    unfuse(model)
    assert head.is_contiguous()


def test_layers_of_one_input_are_found_without_their_names(rows_worth_turning):
    groups = fuse(factored(tiny_gqa())).groups
    if rows_worth_turning:
        assert groups == ()
        return
    ends = [[name.rsplit(".", 1)[1] for name in group] for group in groups]
    assert ends == [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_the_same(kind):
    model = factored(tiny_gqa(), kind)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1}
    expected = model.generate(tiny_tokens(), **settings)
    fuse(model)
    assert torch.equal(model.generate(tiny_tokens(), **settings), expected)


def test_it_stores_nothing_twice_and_saves_the_same_file(tmp_path):
    model = factored(tiny_llama())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attach_config(model, SpectrimConfig(layers=_entries(model)))
    fuse(model)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)
    for _, layer in factored_layers(model):
        if layer.execution.reader is not None:
            packed = layer.execution.reader.packed.weight.untyped_storage()
            assert layer.first.weight.untyped_storage().data_ptr() == packed.data_ptr()
    spectrim.save(model, tiny_tokenizer(), tmp_path / "saved")
    again, _ = load(tmp_path / "saved")
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)


def _entries(model):
    return {n: {"kind": "lowrank", "rank": m.rank} for n, m in factored_layers(model)}


def test_training_falls_back_to_the_plain_layers():
    plain, fused = factored(tiny_llama()), factored(tiny_llama())
    fuse(fused)
    for model in (plain, fused):
        model(tiny_tokens(), labels=tiny_tokens()).loss.backward()
    for expected, parameter in zip(plain.parameters(), fused.parameters(), strict=True):
        error = (parameter.grad - expected.grad).norm()
        assert error <= FLOAT32_RELATIVE * expected.grad.norm()


def test_weights_that_are_changed_moved_or_loaded_are_used():
    model = factored(tiny_llama(seed=1))
    fuse(model)
    other = factored(tiny_llama(seed=2))
    expected = logits(other)
    model.load_state_dict(other.state_dict())
    assert (logits(model) - expected).abs().max() <= PRODUCT_ABSOLUTE
    first = factored(tiny_llama(seed=1))
    model.load_state_dict(first.state_dict(), assign=True)
    assert (logits(model) - logits(first)).abs().max() <= PRODUCT_ABSOLUTE
    half = logits(model.to(torch.bfloat16)).float()
    assert (half - logits(first)).norm() <= BFLOAT16_RELATIVE * half.norm()


def test_a_copy_is_fused_on_its_own():
    model = factored(tiny_llama())
    fuse(model)
    expected = logits(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(copied), expected)


class _Shared(nn.Module):
    """Two layers on one tensor, which may be changed in between."""

    def __init__(self, in_place):
        super().__init__()
        kind = layer_class("lowrank")
        torch.manual_seed(0)
        self.one = kind.from_factors(torch.randn(4, 2), torch.randn(2, 5), None)
        self.two = kind.from_factors(torch.randn(4, 2), torch.randn(2, 5), None)
        self.in_place = in_place

    def forward(self, x):
        x = x * 1.0
        first = self.one(x)
        if self.in_place:
            x.mul_(2.0)
        return first + self.two(x)


@pytest.mark.parametrize("in_place", [False, True])
def test_an_input_changed_in_between_is_seen(in_place):
    module = _Shared(in_place)
    x = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
        if in_place:
            packs = column_major.SHORT == 0
            with pytest.raises(ModelError, match="in place") if packs else nullcontext():
                fuse(module, lambda: module(x))
            assert (module.one.execution is None) == packs
        else:
            assert set(fuse(module, lambda: module(x)).layers) == {"one", "two"}
        assert (module(x) - expected).norm() <= FLOAT32_RELATIVE * expected.norm()


def test_one_layer_called_again_does_not_use_the_old_product():
    module = _Shared(False)
    x = torch.randn(3, 5, dtype=torch.float64)
    fuse(module, lambda: module(x))
    with torch.no_grad():
        first = module.one(x)
        module.one.right.weight.mul_(2)
        assert torch.allclose(module.one(x), 2 * first)


@pytest.mark.few(1)
def test_it_compiles_as_one_graph():
    model = factored(tiny_llama(), "pivoted")
    fuse(model)
    expected = logits(model)
    compiled = torch.compile(model.model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        hidden = compiled(tiny_tokens(4, 12), use_cache=False).last_hidden_state
        assert (model.lm_head(hidden) - expected).abs().max() <= PRODUCT_ABSOLUTE


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tiles"), [("lowrank", False), ("pivoted", True)])
def test_a_decoding_step_is_one_graph_for_every_token(kind, tiles):
    """Behind a static cache, as `generate` compiles it and as a CUDA graph is captured."""
    model = factored(tiny_gqa(), kind)
    fuse(model, tiles=tiles)
    prompt, following = tiny_tokens(2, 9), tiny_tokens(2, 3, seed=1)
    expected = logits(model, torch.cat([prompt, following], 1))[:, 9:]
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(model.forward, fullgraph=True, backend=counter)
    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        model(prompt, past_key_values=cache)
        for place in range(3):
            token = following[:, place : place + 1].contiguous()
            ids = torch.full((2, 1), 9 + place)
            found = step(token, past_key_values=cache, position_ids=ids).logits[:, 0]
            assert (found - expected[:, place]).abs().max() <= PRODUCT_ABSOLUTE
    assert counter.frame_count == 1


def test_a_dense_model_has_nothing_to_fuse():
    with pytest.raises(ModelError, match="no factored layer"):
        fuse(tiny_llama())


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_kernels_for_few_tokens_give_the_same(kind):
    pytest.importorskip("triton", reason="kernels need `pip install triton`")
    model = factored(tiny_gqa(), kind)
    few = tiny_tokens(1, 3)
    expected = logits(model, few)
    fuse(model, kernels=True)
    taken = [layer.execution.kernel for _, layer in factored_layers(model)]
    assert all(kernel is not None for kernel in taken)
    assert (logits(model, few) - expected).abs().max() <= PRODUCT_ABSOLUTE
    unfuse(model)
    assert torch.equal(logits(model, few), expected)
