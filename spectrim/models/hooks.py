"""Hooks that show each target layer's inputs, outputs and output gradients to statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.models.projections import LayerProducts
from spectrim.models.targets import Target
from spectrim.statistics import LayerTokens

Consumer = Callable[[str, LayerTokens, bool], None]
"""Called with layer name, its tokens, and whether the gradient is in them."""


@dataclass(frozen=True)
class BatchIndex:
    """Which rows of a flattened (B * T) batch are real (None: all), and each one's sequence."""

    mask: Tensor | None
    sequence: Tensor

    @classmethod
    def of(cls, mask: Tensor, first_sequence: int) -> BatchIndex:
        rows, length = mask.shape
        numbers = torch.arange(first_sequence, first_sequence + rows, device=mask.device)
        real = None if bool(mask.all()) else mask.flatten()
        return cls(real, numbers.repeat_interleave(length))

    def select(self, rows: Tensor | None) -> BatchIndex:
        """The same for the tokens `rows` that were routed to an expert."""
        if rows is None:
            return self
        return BatchIndex(None if self.mask is None else self.mask[rows], self.sequence[rows])

    def real(self, values: Tensor) -> Tensor:
        """(..., d) -> (n, d), the rows of real tokens."""
        flat = values.detach().flatten(0, -2)
        return flat if self.mask is None else flat[self.mask]

    @property
    def real_sequence(self) -> Tensor:
        return self.sequence if self.mask is None else self.sequence[self.mask]


@dataclass(frozen=True)
class CaptureSpec:
    """What is seen of the batch run inside `capture`, and who is told.

    gradient_only: sink reads nothing but the gradient in the backward pass, so inputs and
    outputs are not kept for it. originals: weights of layers that now hold others, which the
    images of tokens are to be those of.
    """

    index: BatchIndex
    sink: Consumer
    backward: bool = False
    gradient_only: bool = False
    originals: Mapping[str, Tensor] = field(default_factory=dict)


@contextmanager
def capture(model: nn.Module, targets: Sequence[Target], watch: CaptureSpec) -> Iterator[None]:
    """Call the sink at every target for the batch run inside the context.

    Once in the forward pass without a gradient, and, with `backward`, once more in the
    backward pass with it. All hooks are removed on exit.
    """
    handles = []
    for target in targets:
        module, seen = model.get_submodule(target.name), _LayerHook(target.name, watch)
        handles.append(module.register_forward_hook(seen.forward))
        if watch.backward:
            handles.append(module.register_forward_pre_hook(_own_input))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A view for this layer alone, whose gradient is this layer's W^T g."""
    first, *others = inputs
    if not (torch.is_grad_enabled() and first.requires_grad):
        return None
    return (first.view_as(first), *others)


@dataclass(frozen=True)
class _LayerHook:
    """One layer's hooks."""

    name: str
    watch: CaptureSpec

    def forward(
        self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        """The output, where the graph begins with it: nothing before it has to be gone back
        through. A copy, since a leaf of the graph may not be changed in place."""
        begins = self.watch.backward and torch.is_grad_enabled() and not output.requires_grad
        if begins:
            output = output.detach().requires_grad_(True).clone()
        self._tell(module, inputs, output)
        return output if begins else None

    def _tell(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        watch, products = self.watch, LayerProducts(module, self.watch.originals.get(self.name))
        here = watch.index.select(getattr(module, "token_rows", None))
        x, y, sequence = here.real(inputs[0]), here.real(output), here.real_sequence
        images = partial(products.outputs, x, y)
        watch.sink(self.name, LayerTokens(x, y, None, sequence, images), False)
        if not (watch.backward and output.requires_grad):
            return
        if watch.gradient_only:
            x, y = x.new_empty(0, x.shape[1]), y.new_empty(0, y.shape[1])
        self._later(inputs[0], output, LayerTokens(x, y, None, sequence), (here, products))

    def _later(
        self, given: Tensor, output: Tensor, tokens: LayerTokens, rest: tuple[Any, Any]
    ) -> None:
        """Tell the sink in the backward pass: once the gradient is at the layer's own input,
        where that has one."""
        here, products = rest
        held: list[Tensor] = []

        def log_metrics(g: Tensor, back: Tensor | None) -> None:
            images = partial(products.gradients, g, None if back is None else here.real(back))
            self.watch.sink(self.name, replace(tokens, g=g, projections=images), True)

        if given.requires_grad:
            output.register_hook(lambda g: held.append(here.real(g)))
            given.register_hook(lambda back: log_metrics(held.pop(), back))
        else:
            output.register_hook(lambda g: log_metrics(here.real(g), None))


def group_by_input(
    model: nn.Module, targets: Sequence[Target], run: Callable[[], object]
) -> dict[str, str]:
    """Layer name -> first layer that was given the very same input tensor in `run()`."""
    seen: dict[int, tuple[str, Tensor]] = {}
    groups = {target.name: target.name for target in targets}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            first, _ = seen.setdefault(id(inputs[0]), (name, inputs[0]))
            groups[name] = first

        return hook

    handles = [
        model.get_submodule(target.name).register_forward_pre_hook(hook_for(target.name))
        for target in targets
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return groups
