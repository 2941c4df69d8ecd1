"""Hooks, overridden forward passes and evaluation mode: what a model is changed in for a while.

Each context leaves the model as it was, after an error too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

Hook = Callable[..., Any]


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Keep `models` in evaluation mode; restore the mode of every module on leaving.

    A module that was put in place of another inside the context takes over its mode.
    """
    modes = [{name: m.training for name, m in model.named_modules()} for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, by_name in zip(models, modes, strict=True):
            for name, module in model.named_modules():
                module.training = by_name.get(name, by_name[""])


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Keep `model` in evaluation mode, without gradients of its parameters."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def inference(*models: nn.Module) -> Iterator[None]:
    """Keep `models` in evaluation mode, and record no gradients at all."""
    with evaluation_mode(*models), torch.inference_mode():
        yield


@contextmanager
def attach_hooks(
    before: Iterable[tuple[nn.Module, Hook]] = (),
    after: Iterable[tuple[nn.Module, Hook]] = (),
    *,
    prepend: bool = False,
    with_kwargs: bool = False,
    always_call: bool = False,
) -> Iterator[None]:
    """Call hooks before and after the forward passes of modules, until the context ends.

    Exactly the hooks that were added are removed.

    Args:
        before: modules with hooks that are called with their inputs.
        after: modules with hooks that are called with their inputs and outputs.
        prepend: call the hooks of `before` ahead of those that are attached already.
        with_kwargs: call all hooks with the keyword arguments too.
        always_call: call the hooks of `after` after an error too.
    """
    with ExitStack() as handles:
        for module, hook in before:
            handle = module.register_forward_pre_hook(
                hook, prepend=prepend, with_kwargs=with_kwargs
            )
            handles.callback(handle.remove)
        for module, hook in after:
            handle = module.register_forward_hook(
                hook, with_kwargs=with_kwargs, always_call=always_call
            )
            handles.callback(handle.remove)
        yield


@contextmanager
def override_forward(module: nn.Module, forward: Hook) -> Iterator[None]:
    """Let `module` compute `forward` instead of its own, until the context ends."""
    instance = vars(module)
    own = instance.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        instance.pop("forward")
        if own is not None:
            module.forward = own
