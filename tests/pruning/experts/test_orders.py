"""What every order of removal holds, and what each of them says."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from spectrim.calibration.routed_tokens import RoutedTokens
from spectrim.pruning.experts import EXPERT_ORDERS
from spectrim.registry import NoOptions
from tests.routed_models import split_model, tokens_of
from tests.tiny_models import tiny_mixtral, tiny_moe, tiny_tokens

ORDERS = EXPERT_ORDERS.names()
FIRST = "model.layers.0.mlp.experts"


def order_of(name: str, tokens: RoutedTokens) -> list[int]:
    return EXPERT_ORDERS.get(name).order(tokens, EXPERT_ORDERS.options(name))


@pytest.fixture(scope="module")
def tokens() -> dict[str, RoutedTokens]:
    return tokens_of(split_model(tiny_moe), tiny_tokens(6, 20))


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_names_experts_once_and_leaves_a_token_all_of_its_choices(name, tokens):
    for each in tokens.values():
        order = order_of(name, each)
        assert len(order) == len(set(order)) == each.most_removed == 2
        assert set(order) <= set(range(4))
        assert order == order_of(name, each)


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_states_its_source(name):
    module = EXPERT_ORDERS.get(name)
    assert module.REFERENCE
    assert isinstance(module.UNIFORM, bool)


def test_the_first_removal_is_the_cheapest_of_all(tokens):
    for each in tokens.values():
        first = order_of("predicted_loss", each)[0]
        assert each.price([first]) == min(each.price([e]) for e in range(4))


def test_no_pair_that_begins_like_it_is_cheaper(tokens):
    for each in tokens.values():
        order = order_of("predicted_loss", each)
        pairs = [pair for pair in combinations(range(4), 2) if order[0] in pair]
        assert each.price(order) == min(map(each.price, pairs))


@torch.no_grad()
def test_of_two_experts_that_replace_each_other_only_one_goes_early():
    model, ids = split_model(tiny_mixtral), tiny_tokens(6, 20)
    experts, router = model.get_submodule(FIRST), model.get_submodule("model.layers.0.mlp.gate")
    for layers in (experts.up, experts.down):
        layers[1].weight.copy_(layers[0].weight)
    router.weight[1] = router.weight[0]
    tokens = tokens_of(model, ids)[FIRST]
    assert tokens.price([0, 1]) > 2 * max(tokens.price([0]), tokens.price([1]))
    assert set(order_of("predicted_loss", tokens)) != {0, 1}


def test_reap_is_the_mean_of_weight_times_length_over_an_experts_own_tokens(tokens):
    each = tokens[FIRST]
    index, weights = each.choices
    scores = []
    for expert in range(4):
        own = [
            float(weights[token, place] * each.norms[token, expert])
            for token, place in zip(*torch.where(index == expert), strict=True)
        ]
        scores.append(sum(own) / len(own) if own else 0.0)
    expected = sorted(range(4), key=scores.__getitem__)[:2]
    assert EXPERT_ORDERS.get("reap").order(each, NoOptions()) == expected
