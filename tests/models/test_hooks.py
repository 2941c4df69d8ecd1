"""Whatever a context changes in a model is as it was when the context ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from spectrim.models.experts import fused_expert_names, record_routes, split_experts
from spectrim.models.hooks import (
    attach_hooks,
    evaluation_mode,
    frozen_eval,
    inference,
    override_forward,
)
from tests.tiny_models import tiny_moe, tiny_tokens


@contextmanager
def interrupted() -> Iterator[None]:
    with pytest.raises(KeyboardInterrupt):
        yield


def mixed() -> nn.Sequential:
    """A model in training mode with one part in evaluation mode."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model[1][0].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("context", [evaluation_mode, frozen_eval, inference])
def test_every_module_gets_its_own_mode_back(context):
    model = mixed()
    model[0].weight.requires_grad_(False)
    before, flags = modes(model), [p.requires_grad for p in model.parameters()]
    with interrupted(), context(model):
        assert not any(modes(model))
        raise KeyboardInterrupt
    assert modes(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags


def test_a_module_takes_over_the_mode_of_the_one_that_it_replaces():
    model = mixed()
    with evaluation_mode(model, other := mixed()):
        model[1][0], model[1][1] = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))
        assert not any(modes(other))
    assert not model[1][0].training
    assert model[1][1].training
    assert model[1][1][0].training
    assert modes(other) == modes(mixed())


def test_hooks_are_called_and_removed():
    model, calls = mixed(), []
    other = model[0].register_forward_hook(lambda *_: calls.append("other"))
    with (
        interrupted(),
        attach_hooks(
            before=[(model[0], lambda *_: calls.append("before"))],
            after=[(model[0], lambda *_: calls.append("after"))],
        ),
    ):
        model(torch.ones(1, 2))
        assert calls == ["before", "other", "after"]
        raise KeyboardInterrupt
    assert not model[0]._forward_pre_hooks
    assert list(model[0]._forward_hooks) == [other.id]


def test_a_hook_that_cannot_be_attached_leaves_none():
    model = mixed()
    with pytest.raises(AttributeError), attach_hooks([(model[0], print), (None, print)]):
        pass
    assert not model[0]._forward_pre_hooks


def test_forward_passes_are_overridden_one_inside_the_other():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    expected = layer(x)
    with override_forward(layer, lambda x: 2 * x):
        with interrupted(), override_forward(layer, lambda x: 3 * x):
            assert torch.equal(layer(x), 3 * x)
            raise KeyboardInterrupt
        assert torch.equal(layer(x), 2 * x)
    assert torch.equal(layer(x), expected)
    assert "forward" not in vars(layer)


def test_routes_are_the_tokens_of_each_expert():
    model = tiny_moe()
    names = fused_expert_names(model)
    split_experts(model, names)
    experts, chosen = model.get_submodule(names[0]), []
    with (
        attach_hooks([(experts, lambda _, inputs: chosen.append(inputs[1]))]),
        record_routes(model) as routes,
        record_routes(model) as inner,
        torch.no_grad(),
    ):
        model(tiny_tokens())
    assert inner is routes
    assert experts.routes is None
    for number, (up, down) in enumerate(zip(experts.up, experts.down, strict=True)):
        rows = torch.where(chosen[0] == number)[0]
        assert torch.equal(routes[up], rows)
        assert torch.equal(routes[down], rows)
