"""Prices of removed experts are those of the model that is left, to second order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrim.models.expert_removal import ExpertRemoval, without_experts
from spectrim.models.hooks import attach_hooks
from tests.routed_models import ROUTED, split_model, tokens_of
from tests.tiny_models import tiny_moe, tiny_tokens
from tests.tolerances import FLOAT32_RELATIVE, FLOAT64_RELATIVE, SLOPE_RELATIVE

STEP = 1e-2
"""Of a change: norms and routers round to float32, which a smaller step would show."""


def summed_loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")


def output_of(model: nn.Module, name: str, ids: torch.Tensor) -> torch.Tensor:
    found = []
    module = model.get_submodule(name)
    with attach_hooks(after=[(module, lambda m, i, o: found.append(o))]):
        model(input_ids=ids)
    return found[0]


@pytest.mark.parametrize("kind", ROUTED)
@torch.no_grad()
def test_the_effect_is_the_derivative_toward_the_smaller_block(kind):
    model, ids = split_model(ROUTED[kind]), tiny_tokens(3, 16)
    name, tokens = list(tokens_of(model, ids).items())[-1]
    removed = (0, 2)
    before = output_of(model, name, ids)
    with without_experts(model, [ExpertRemoval(name, tokens.routing.router, removed)]):
        change = output_of(model, name, ids) - before
    losses = []
    for sign in (1, -1):
        moved = [(model.get_submodule(name), lambda m, i, o, s=sign: o + s * STEP * change)]
        with attach_hooks(after=moved):
            losses.append(float(summed_loss(model, ids)))
    slope = (losses[0] - losses[1]) / (2 * STEP)
    assert float(tokens.change(removed).sum()) == pytest.approx(slope, rel=SLOPE_RELATIVE)


@torch.no_grad()
def test_a_price_is_half_the_mean_square_over_all_tokens_of_the_text():
    model, ids = split_model(tiny_moe), tiny_tokens(3, 16)
    tokens = next(iter(tokens_of(model, ids).values()))
    assert tokens.tokens == ids.numel()
    expected = 0.5 * float(tokens.change([1]).square().mean())
    assert tokens.price([1]) == pytest.approx(expected, rel=FLOAT64_RELATIVE)
    assert tokens.price([]) == 0.0


@torch.no_grad()
def test_prices_of_an_order_never_fall():
    model, ids = split_model(tiny_moe), tiny_tokens(4, 16)
    for tokens in tokens_of(model, ids).values():
        prices = tokens.prices([3, 0])
        assert len(prices) == 3
        assert prices == sorted(prices)
        assert prices[-1] >= tokens.price([3, 0])


@torch.no_grad()
def test_an_expert_that_no_token_chose_costs_nothing():
    model, ids = split_model(ROUTED["gpt_oss"]), tiny_tokens(3, 16)
    model.get_submodule("model.layers.0.mlp.router").bias[2] = -100.0
    tokens = tokens_of(model, ids)["model.layers.0.mlp.experts"]
    others = [tokens.price([expert]) for expert in (0, 1, 3)]
    assert tokens.price([2]) <= FLOAT32_RELATIVE * min(others)


@torch.no_grad()
def test_the_order_of_rows_does_not_matter():
    model, ids = split_model(tiny_moe), tiny_tokens(4, 12)
    one, other = tokens_of(model, ids), tokens_of(model, ids.flip(0))
    for name, tokens in one.items():
        assert tokens.price([0]) == pytest.approx(other[name].price([0]), rel=FLOAT64_RELATIVE)
