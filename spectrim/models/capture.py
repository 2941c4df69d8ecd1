"""Show each target layer's inputs, outputs and output gradients to statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.models.experts import record_routes
from spectrim.models.hooks import attach_hooks
from spectrim.models.projections import LayerProducts
from spectrim.models.targets import Target
from spectrim.statistics import LayerTokens

Consumer = Callable[[str, LayerTokens, bool], None]
"""Called with layer name, its tokens, and whether the gradient is in them."""


@dataclass(frozen=True)
class BatchIndex:
    """The real rows of a flattened (B * T) batch (None: all), and the sequence of each.

    weight (B * T,): of each row in sums, None where all count once.
    """

    mask: Tensor | None
    sequence: Tensor
    weight: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor, first_sequence: int, weights: Tensor | None = None) -> BatchIndex:
        """Return the index of a batch with `weights` (B,) of its sequences."""
        rows, length = mask.shape
        numbers = torch.arange(first_sequence, first_sequence + rows, device=mask.device)
        real = None if bool(mask.all()) else mask.flatten()
        weight = None if weights is None else weights.repeat_interleave(length)
        return cls(real, numbers.repeat_interleave(length), weight)

    def select(self, rows: Tensor | None) -> BatchIndex:
        """Return the index of the tokens `rows` that were routed to an expert."""
        if rows is None:
            return self
        mask, weight = (None if t is None else t[rows] for t in (self.mask, self.weight))
        return BatchIndex(mask, self.sequence[rows], weight)

    def real(self, values: Tensor) -> Tensor:
        """(..., d) -> (n, d), the rows of real tokens."""
        flat = values.detach().flatten(0, -2)
        return flat if self.mask is None else flat[self.mask]

    @property
    def real_sequence(self) -> Tensor:
        return self.sequence if self.mask is None else self.sequence[self.mask]

    @property
    def real_weight(self) -> Tensor | None:
        if self.mask is None or self.weight is None:
            return self.weight
        return self.weight[self.mask]


@dataclass(frozen=True)
class CaptureSpec:
    """The tensors to capture in the batch run inside `capture`, and their receivers.

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
    modules = [model.get_submodule(target.name) for target in targets]
    with record_routes(model) as routes:
        layers = [_LayerHook(target.name, watch, routes) for target in targets]
        after = [(module, hook.forward) for module, hook in zip(modules, layers, strict=True)]
        before = [(module, _own_input) for module in modules if watch.backward]
        with attach_hooks(before, after):
            yield


def _own_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Replace the input by a view for this layer alone, whose gradient is its W^T g."""
    first, *others = inputs
    if not (torch.is_grad_enabled() and first.requires_grad):
        return None
    return (first.view_as(first), *others)


@dataclass(frozen=True)
class _LayerHook:
    """One layer's hooks."""

    name: str
    watch: CaptureSpec
    routes: Mapping[nn.Module, Tensor]

    def forward(
        self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        """Start the graph at the output where nothing before it needs gradients.

        Returns a copy then, since a leaf of the graph may not be changed in place."""
        begins = self.watch.backward and torch.is_grad_enabled() and not output.requires_grad
        if begins:
            output = output.detach().requires_grad_(True).clone()
        self._tell(module, inputs, output)
        return output if begins else None

    def _tell(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        watch, products = self.watch, LayerProducts(module, self.watch.originals.get(self.name))
        here = watch.index.select(self.routes.get(module))
        x, y, sequence = here.real(inputs[0]), here.real(output), here.real_sequence
        images = partial(products.outputs, x, y)
        tokens = LayerTokens(x, y, None, sequence, images, here.real_weight)
        watch.sink(self.name, tokens, False)
        if not (watch.backward and output.requires_grad):
            return
        if watch.gradient_only:
            x, y = x.new_empty(0, x.shape[1]), y.new_empty(0, y.shape[1])
        tokens = replace(tokens, x=x, y=y, projections=None)
        self._later(inputs[0], output, tokens, (here, products))

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
    given: dict[str, list[Any]] = {target.name: [] for target in targets}

    def hook_for(name: str) -> Callable[..., None]:
        return lambda module, inputs: given[name].append(inputs[0] if inputs else name)

    with attach_hooks((model.get_submodule(t.name), hook_for(t.name)) for t in targets):
        run()
    first: dict[tuple[int, ...], str] = {}
    return {
        name: first.setdefault(tuple(map(id, inputs)), name) if inputs else name
        for name, inputs in given.items()
    }
