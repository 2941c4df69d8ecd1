"""The divergence of a cut model, with kept block outputs, against whole forward passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from spectrim.data import TokenBlocks
from spectrim.linalg.truncated import Factors
from spectrim.models.linear import get_bias, get_weight, set_weight
from spectrim.models.targets import decoder_blocks as decoder_blocks
from spectrim.models.targets import find_targets
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.recipe import Recipe
from spectrim.planning.probe import Probe, swap_weights
from tests.tiny_models import TINY_MODELS, tiny_tokens
from tests.tolerances import DIVERGENCE_ABSOLUTE, DIVERGENCE_RELATIVE

RANK = 3


def token_rows(padded: bool) -> TokenBlocks:
    ids = tiny_tokens(rows=3, length=10)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 6:] = mask[2, 9:] = False
    return TokenBlocks(ids, mask if padded else None, "", "", 1)


def factors_of(module: nn.Module, offset: bool = False) -> Factors:
    """The truncated SVD, with some offset where asked."""
    u, s, v = torch.linalg.svd(get_weight(module).detach().double(), full_matrices=False)
    return Factors(u * s, v, s, s / s.max() if offset else None)


def prepared(name: str) -> nn.Module:
    """Fused experts split, and weights so large that losing a rank can be measured."""
    model = TINY_MODELS[name]()
    prepare(model, Recipe())
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 4
    return model


def one_layer_per_block(model: nn.Module) -> list[str]:
    """The first and the last layer of each block, whatever they are called."""
    names = [target.name for target in find_targets(model)]
    chosen = []
    for block, _ in decoder_blocks(model):
        inside = [name for name in names if name.startswith(block + ".")]
        chosen += [inside[0], inside[-1]]
    return chosen


@torch.no_grad()
def naive_divergence(model: nn.Module, rows: TokenBlocks, cut: dict[str, Factors]) -> float:
    """sum p (log p - log q) in float64, each row run on its own and without its padding."""
    smaller = copy.deepcopy(model).double()
    for name, factors in cut.items():
        module = smaller.get_submodule(name)
        bias = factors.bias(RANK, get_bias(module))
        set_weight(module, factors.weight(RANK))
        module.bias = None if bias is None else nn.Parameter(bias)
    total, count = 0.0, 0
    twin = copy.deepcopy(model).double()
    for number, ids in enumerate(rows.ids):
        real = len(ids) if rows.mask is None else int(rows.mask[number].sum())
        scored = min(real, len(ids) - 1)
        p = _log_probabilities(twin, ids[:real])[:scored]
        q = _log_probabilities(smaller, ids[:real])[:scored]
        total += float((p.exp() * (p - q)).sum())
        count += scored
    return total / count


def _log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids[None], use_cache=False).logits[0].log_softmax(-1)


def agrees(measured: float, expected: float) -> bool:
    allowed = DIVERGENCE_ABSOLUTE + DIVERGENCE_RELATIVE * expected
    return abs(measured - expected) <= allowed


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_one_layer_of_each_block(name, padded):
    model, rows = prepared(name), token_rows(padded)
    probe = Probe(model, rows, tokens=10_000)
    for layer in one_layer_per_block(model):
        factors = {layer: factors_of(model.get_submodule(layer))}
        expected = naive_divergence(model, rows, factors)
        assert agrees(probe.divergence(factors, {layer: RANK}), expected), layer


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_all_layers_together_and_their_biases(name):
    model, rows = prepared(name), token_rows(False)
    layers = [target.name for target in find_targets(model)]
    factors = {layer: factors_of(model.get_submodule(layer), offset=True) for layer in layers}
    probe = Probe(model, rows, tokens=10_000)
    measured = probe.divergence(factors, dict.fromkeys(layers, RANK))
    assert agrees(measured, naive_divergence(model, rows, factors))


@pytest.mark.parametrize("name", ["tied", "gpt2"])
def test_a_tied_output_embedding_alone(name):
    """The input embedding keeps its weight."""
    model, rows = prepared(name), token_rows(False)
    factors = {"lm_head": factors_of(model.lm_head)}
    twin = copy.deepcopy(model)
    twin.lm_head.weight = nn.Parameter(twin.lm_head.weight.detach().clone())
    expected = naive_divergence(twin, rows, factors)
    probe = Probe(model, rows, tokens=10_000)
    assert agrees(probe.divergence(factors, {"lm_head": RANK}), expected)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_no_change_costs_nothing_and_tokens_limit_the_rows():
    model, rows = prepared("llama"), token_rows(False)
    assert abs(Probe(model, rows, tokens=25).divergence({}, {})) <= DIVERGENCE_ABSOLUTE
    assert Probe(model, rows, tokens=25).ids.shape == (2, 10)
    assert Probe(model, rows, tokens=2).ids.shape == (1, 10)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_model_is_restored_exactly(name):
    model = prepared(name)
    before = dict(model.named_parameters())
    values = {n: parameter.detach().clone() for n, parameter in before.items()}
    probe = Probe(model, token_rows(True), tokens=10_000)
    layers = [target.name for target in find_targets(model)]
    factors = {n: factors_of(model.get_submodule(n), offset=True) for n in layers}
    probe.divergence(factors, {layers[-1]: RANK})
    probe.divergence(factors, dict.fromkeys(layers, RANK))
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[n] is before[n] for n in before)
    assert all(torch.equal(after[n], values[n]) for n in before)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@contextmanager
def interrupted() -> Iterator[None]:
    with pytest.raises(KeyboardInterrupt):
        yield


def test_the_model_is_restored_after_an_error():
    model = prepared("llama")
    module = model.model.layers[0].mlp.up_proj
    weight, factors = module.weight, factors_of(module, offset=True)
    with interrupted(), swap_weights(module, factors, RANK):
        assert not torch.equal(module.weight, weight)
        assert module.bias is not None
        raise KeyboardInterrupt
    assert module.weight is weight
    assert module.bias is None
    assert "bias" in module._parameters


def test_a_trained_model_can_still_be_trained():
    """Nothing of inference mode stays in its parameters."""
    model = prepared("llama")
    layers = [target.name for target in find_targets(model)]
    factors = {n: factors_of(model.get_submodule(n)) for n in layers}
    Probe(model, token_rows(False), 100).divergence(factors, dict.fromkeys(layers, RANK))
    model(tiny_tokens(), labels=tiny_tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_blocks_that_hand_on_more_than_their_output_are_run_again():
    """The second block reads what the first one wrote on the side."""
    model = TINY_MODELS["llama"]()
    first, second = model.model.layers
    side: list[torch.Tensor] = []
    plain_first, plain_second = first.forward, second.forward

    def write(hidden, *args, **kwargs):
        side[:] = [hidden]
        return plain_first(hidden, *args, **kwargs)

    def read(hidden, *args, **kwargs):
        return plain_second(hidden + side.pop(), *args, **kwargs)

    first.forward, second.forward = write, read
    probe = Probe(model, token_rows(False), 64)
    assert probe._is_replayable(0)
    assert not probe._is_replayable(1)
    assert Probe(TINY_MODELS["llama"](), token_rows(False), 64)._is_replayable(1)
