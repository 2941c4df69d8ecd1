"""A model without some experts is the model whose router gives them no probability."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.models.expert_removal import (
    ExpertRemoval,
    cut_router,
    find_routings,
    remove_experts,
    without_experts,
)
from spectrim.models.experts import RemovedExpert
from tests.routed_models import ROUTED, family, routings_of, split_model
from tests.tiny_models import tiny_mixtral, tiny_moe, tiny_tokens
from tests.tolerances import FLOAT32_RELATIVE

NAME = "model.layers.1.mlp.experts"


@pytest.mark.parametrize("name", ROUTED)
def test_the_router_of_each_kind_is_found(name):
    model = split_model(ROUTED[name])
    routings = routings_of(model)
    assert routings
    for routing in routings.values():
        assert (routing.count, routing.chosen) == (4, 2)
        assert len(model.get_submodule(routing.router).weight) == 4


@pytest.mark.parametrize("name", ["llama4_text", "longcat_flash"])
def test_experts_with_another_call_or_router_have_none(name):
    model = split_model(lambda: family(name))
    found, others = find_routings(model, lambda: model(input_ids=tiny_tokens(2, 16)))
    assert not found
    assert others


def test_groups_of_experts_that_a_removal_would_break_have_no_routing():
    model = split_model(ROUTED["deepseek_v3"])
    router = model.get_submodule("model.layers.1.mlp.gate")
    router.num_group = router.topk_group = 2
    assert not routings_of(model)


def masked(router: nn.Module, removed: list[int], renormalizes: bool):
    """The forward pass of a softmax router that gives `removed` no probability."""

    def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden.flatten(0, -2) @ router.weight.T
        logits[:, removed] = -torch.inf
        weights, index = logits.softmax(-1).topk(router.top_k)
        if renormalizes:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights, index

    return forward


@pytest.mark.parametrize("build", [tiny_moe, tiny_mixtral])
@pytest.mark.parametrize("removed", [(0,), (3, 1)])
@torch.no_grad()
def test_removal_is_a_logit_of_minus_infinity(build, removed):
    model, ids = split_model(build), tiny_tokens(3, 20)
    routing = routings_of(model)[NAME]
    reference = copy.deepcopy(model)
    router = reference.get_submodule(routing.router)
    renormalizes = getattr(router, "norm_topk_prob", True)
    router.forward = masked(router, list(removed), renormalizes)
    remove_experts(model, [ExpertRemoval(NAME, routing.router, removed)])
    expected = reference(ids).logits
    error = (model(ids).logits - expected).norm()
    assert float(error) <= FLOAT32_RELATIVE * float(expected.norm())


@torch.no_grad()
def test_the_others_keep_their_names_and_tensors():
    model = split_model(tiny_moe)
    before = dict(model.named_parameters())
    router = routings_of(model)[NAME].router
    remove_experts(model, [ExpertRemoval(NAME, router, (1,))])
    after = dict(model.named_parameters())
    gone = {f"{NAME}.{side}.1.weight" for side in ("up", "down")}
    assert set(after) == set(before) - gone
    assert all(after[n] is before[n] for n in after if n != f"{router}.weight")
    assert torch.equal(after[f"{router}.weight"], before[f"{router}.weight"][[0, 2, 3]])
    assert isinstance(model.get_submodule(f"{NAME}.down.1"), RemovedExpert)


@torch.no_grad()
def test_a_removal_for_a_while_leaves_nothing_behind():
    model, ids = split_model(tiny_mixtral), tiny_tokens(2, 16)
    router, before = routings_of(model)[NAME].router, model(ids).logits
    removals, seen = [ExpertRemoval(NAME, router, (2,))], []

    def fail() -> None:
        with without_experts(model, removals):
            seen.append(model(ids).logits)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not torch.equal(seen[0], before)
    assert torch.equal(model(ids).logits, before)
    assert model.get_submodule(NAME).removed == []


def test_experts_may_leave_one_after_the_other():
    model = split_model(tiny_moe)
    router = routings_of(model)[NAME].router
    for expert in (2, 0):
        remove_experts(model, [ExpertRemoval(NAME, router, (expert,))])
    assert model.get_submodule(NAME).kept == (1, 3)
    assert len(model.get_submodule(router).weight) == 2


@pytest.mark.parametrize("removed", [(0, 1, 2, 3), (4,), (0, 0)])
def test_impossible_removals_are_refused(removed):
    model = split_model(tiny_moe)
    router = routings_of(model)[NAME].router
    with pytest.raises(ModelError, match="expected some of them"):
        remove_experts(model, [ExpertRemoval(NAME, router, removed)])


def test_a_module_without_rows_of_experts_is_no_router():
    with pytest.raises(ModelError, match="no row for each"):
        cut_router(nn.Linear(4, 3), 5, [0])
