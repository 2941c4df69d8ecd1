"""Tiles: the same outputs, and no activation of full width in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, BertConfig

from spectrim import fuse, unfuse
from spectrim.evaluation.speed.memory import peak_bytes
from spectrim.inference.tiling import LazyTensor, tile
from spectrim.inference.tiling.attention import Attention
from spectrim.inference.tiling.shapes import result
from spectrim.models.replace import factored_layers
from spectrim.models.targets import decoder_blocks
from tests.inference.test_fuse import factored
from tests.tiny_models import TINY_MODELS, randomize_biases, tiny_gemma, tiny_gqa, tiny_tokens
from tests.tolerances import BFLOAT16_RELATIVE, PRODUCT_ABSOLUTE

ROWS, LENGTH = 4, 90
KINDS = ("lowrank", "pivoted")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that rows, tokens and heads are parted, and not evenly."""
    monkeypatch.setitem(tile.ROWS, "cpu", 32)
    monkeypatch.setattr("spectrim.inference.tiling.attention.BYTES", 4 * LENGTH * 12)


def tiny_bert():
    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = AutoModel.from_config(BertConfig(vocab_size=128, num_attention_heads=4, **sizes))
    randomize_biases(model, 0)
    return model.eval()


MODELS = {**TINY_MODELS, "gemma": tiny_gemma, "bert": tiny_bert}


def padded():
    """Tokens, and a mask with padding at the start of one row and at the end of another."""
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[1, :20] = 0
    mask[2, 50:] = 0
    return tiny_tokens(ROWS, LENGTH), mask


@torch.no_grad()
def outputs(model, **options):
    return model(tiny_tokens(ROWS, LENGTH), **options)[0]


class Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if type(t) is torch.Tensor and not t.is_meta]
        self.largest = max([self.largest, *(t.numel() for t in made)])
        return result


@pytest.mark.few(6)
@pytest.mark.parametrize("kind", [*KINDS, "sparse_dictionary"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay_and_come_back(name, kind):
    model = factored(MODELS[name](), kind)
    tokens, mask = padded()
    with torch.no_grad():
        plain, hidden = outputs(model), model(tokens, attention_mask=mask)[0][mask.bool()]
    fuse(model, tiles=True)
    assert (outputs(model) - plain).abs().max() <= PRODUCT_ABSOLUTE
    with torch.no_grad():
        found = model(tokens, attention_mask=mask)[0][mask.bool()]
    assert (found - hidden).abs().max() <= PRODUCT_ABSOLUTE
    unfuse(model)
    assert torch.equal(outputs(model), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "llama", "gqa"])
def test_nothing_of_full_width_is_written(name, kind):
    model = factored(MODELS[name](), kind)
    options = {} if name == "bert" else {"use_cache": False, "logits_to_keep": 1}
    width = model.config.hidden_size
    with Sizes() as before:
        outputs(model, **options)
    fuse(model, tiles=True)
    with Sizes() as after:
        outputs(model, **options)
    assert before.largest == ROWS * LENGTH * model.config.intermediate_size
    assert after.largest <= ROWS * LENGTH * width


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoders_memory_is_its_residual_stream(kind):
    """What a block takes for itself: a tile, beside what it gives."""
    model = factored(tiny_bert(), kind)
    device, parts = torch.device("cpu"), [block for _, block in decoder_blocks(model)]
    before = peak_bytes(lambda: outputs(model), device, parts)
    fuse(model, tiles=True)
    after = peak_bytes(lambda: outputs(model), device, parts)
    assert after.activation <= 0.5 * before.activation
    assert after.transient <= 0.3 * before.transient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gqa", "gpt2", "gemma"])
def test_generation_behind_a_long_prompt_is_the_same(name, kind):
    model = factored(MODELS[name](), kind)
    tokens, mask = padded()
    mask[2] = 1
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 2}
    expected = model.generate(tokens, attention_mask=mask, **settings)
    fuse(model, tiles=True)
    assert torch.equal(model.generate(tokens, attention_mask=mask, **settings), expected)


def test_nothing_that_waits_leaves_the_model():
    model = factored(tiny_gqa())
    fuse(model, tiles=True)
    with torch.no_grad():
        given = model(tiny_tokens(ROWS, LENGTH), output_hidden_states=True)
    tensors = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor)]
    assert len(tensors) > 3
    assert all(type(t) is torch.Tensor for t in tensors)
    assert all(type(t) is torch.Tensor for layer in given.past_key_values.layers
               for t in (layer.keys, layer.values))  # fmt: skip


def test_few_tokens_training_and_autocast_do_not_wait(monkeypatch):
    model = factored(tiny_gqa())
    fuse(model, tiles=True)
    monkeypatch.setattr(LazyTensor, "__new__", lambda *_: pytest.fail("something waits"))
    with torch.no_grad():
        model(tiny_tokens(2, 100))
        with torch.autocast("cpu", torch.bfloat16):
            outputs(model)
    model(tiny_tokens(ROWS, LENGTH), labels=tiny_tokens(ROWS, LENGTH)).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_half_precision_eager_attention_and_a_copy():
    model = factored(tiny_gqa())
    expected = outputs(model)
    fuse(model, tiles=True)
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert (outputs(copied) - expected).abs().max() <= PRODUCT_ABSOLUTE
    copied.set_attn_implementation("eager")
    assert (outputs(copied) - expected).abs().max() <= PRODUCT_ABSOLUTE
    half = outputs(copied.to(torch.bfloat16)).float()
    assert (half - expected).norm() <= BFLOAT16_RELATIVE * expected.norm()


class Around(nn.Module):
    """A layer between calls that no rule is there for."""

    def __init__(self, then):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.then = nn.Linear(24, 24), then

    def forward(self, x):
        y = self.inner(x)
        return self.then(y) + y[0, 0]


@pytest.mark.parametrize(
    "then",
    [
        lambda y: y.cumsum(1),
        lambda y: y.softmax(1) * y,
        lambda y: (y.transpose(1, 2) @ y)[:, :1],
        lambda y: y.view(ROWS, 3, 30, 24)[:, 1] * y.mean(1, keepdim=True),
        lambda y: y.flip(1) + y.reshape(-1, 24).sum(0),
        lambda y: y.add_(1.0) * 2,
        lambda y: torch.cat([y, y], 1)[:, ::2],
        lambda y: y.unfold(1, 90, 1)[..., 0] + y.to("cpu", torch.float32),
    ],
)
def test_calls_that_cannot_wait_are_made_on_the_whole(then):
    module = factored(Around(then))
    x = torch.randn(ROWS, LENGTH, 24)
    with torch.no_grad():
        expected = module(x)
        fuse(module, lambda: module(x), tiles=True)
        assert type(module(x)) is torch.Tensor
        assert (module(x) - expected).abs().max() <= PRODUCT_ABSOLUTE * expected.abs().max()


def test_attention_of_a_llama_is_made_from_factors(monkeypatch):
    made = []
    original = Attention.make
    monkeypatch.setattr(Attention, "make", lambda *a: made.append(1) or original(*a))
    model = factored(tiny_gqa())
    fuse(model, tiles=True)
    made.clear()
    outputs(model, use_cache=False)
    assert len(made) >= 2 * ROWS
    assert sum(1 for _ in factored_layers(model)) == 14


@pytest.mark.parametrize("kind", [*KINDS, "sparse_dictionary"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_tiles_of_several_short_rows(name, kind):
    model, tokens = factored(MODELS[name](), kind), tiny_tokens(40, 10)
    with torch.no_grad():
        expected = model(tokens)[0]
        fuse(model, tiles=True)
        assert (model(tokens)[0] - expected).abs().max() <= PRODUCT_ABSOLUTE


def test_queries_are_turned_some_at_a_time(monkeypatch):
    """In place of four tensors of their size."""
    model, device = factored(tiny_gqa()), torch.device("cpu")
    parts = [block for _, block in decoder_blocks(model)]
    monkeypatch.setattr("spectrim.inference.tiling.attention.BYTES", 2**22)
    fuse(model, tiles=True)

    def run():
        with torch.inference_mode():
            return model(tiny_tokens(1, 320), logits_to_keep=1)[0]

    expected, few = run(), peak_bytes(run, device, parts).transient
    monkeypatch.setitem(tile.ROWS, "cpu", 320)
    assert (run() - expected).abs().max() <= PRODUCT_ABSOLUTE
    assert few < 0.9 * peak_bytes(run, device, parts).transient


@pytest.mark.slow
def test_a_compiled_model_goes_the_usual_way(monkeypatch):
    model = factored(tiny_gqa())
    expected = outputs(model)
    fuse(model, tiles=True)
    monkeypatch.setattr(LazyTensor, "__new__", lambda *_: pytest.fail("something waits"))
    compiled = torch.compile(model, backend="eager")
    assert (outputs(compiled) - expected).abs().max() <= PRODUCT_ABSOLUTE


def test_results_are_told_apart_by_the_types_of_constants():
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert result(torch.mul, (ids, 2), {}).dtype == torch.long
    assert result(torch.mul, (ids, 2.0), {}).dtype == torch.float32
    assert result(torch.mul, (ids, 2), {}).dtype == torch.long
    assert result(torch.Tensor.__getitem__, (ids, (..., slice(1, 3))), {}).shape == (2, 2)
    assert result(torch.cat, ([ids, ids], 1), {}).shape == (2, 6)
