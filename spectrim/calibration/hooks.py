"""Hooks that show each target layer's inputs, outputs and output gradients to statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.statistics import LayerTokens
from spectrim.surgery.targets import Target

Sink = Callable[[str, LayerTokens, bool], None]
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


@contextmanager
def observed(
    model: nn.Module, targets: Sequence[Target], index: BatchIndex, sink: Sink, backward: bool
) -> Iterator[None]:
    """Call `sink` at every target for the batch run inside the context.

    Once in the forward pass without a gradient, and, with `backward`, once more in the
    backward pass with it. All hooks are removed on exit.
    """

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            here = index.select(getattr(module, "token_rows", None))
            x, y, sequence = here.real(inputs[0]), here.real(output), here.real_sequence
            sink(name, LayerTokens(x, y, None, sequence), False)
            if backward and output.requires_grad:
                output.register_hook(
                    lambda g: sink(name, LayerTokens(x, y, here.real(g), sequence), True)
                )

        return hook

    handles = [
        model.get_submodule(target.name).register_forward_hook(hook_for(target.name))
        for target in targets
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shared_inputs(
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
