"""Watch which linear layers a model uses through their tensors instead of calling them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.models.hooks import attach_hooks

_TENSORS = ("weight", "bias")


@dataclass
class WeightReads:
    """The layers that were called, and those read from outside their own forward pass.

    Attributes:
        model: that the layers are in.
        called: layers that were called in evaluation mode.
        read: by layer name, its weight as it was when it or the bias was first read, and how
            often that had been written to.
    """

    model: nn.Module
    called: set[str] = field(default_factory=set)
    read: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    _biases: set[str] = field(default_factory=set)
    _running: set[str] = field(default_factory=set)

    def replaced(self, layers: Mapping[str, nn.Module]) -> list[str]:
        """Return the layers that are read in place of being called, or written to."""
        return [
            name
            for name, (_, version) in self.read.items()
            if name not in self.called
            or name in self._biases
            or _weight(layers[name])._version != version
        ]

    def rewritten(self, layers: Mapping[str, nn.Module]) -> list[str]:
        """Return the layers whose weight is another one now than when it was first read."""
        return [
            name
            for name, (before, _) in self.read.items()
            if not torch.equal(before, _weight(layers[name]))
        ]

    def note(self, name: str, module: nn.Module, attribute: str) -> None:
        if name in self._running:
            return
        if name not in self.read:
            weight = _weight(module)
            self.read[name] = (weight.detach().clone(), weight._version)
        if attribute == "bias" and module._parameters.get("bias") is not None:
            self._biases.add(name)

    def start(self, name: str) -> None:
        self._running.add(name)
        if not self.model.training:
            self.called.add(name)

    def stop(self, name: str) -> None:
        self._running.discard(name)


def _weight(module: nn.Module) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


@contextmanager
def watch_weight_reads(
    model: nn.Module, modules: Mapping[str, nn.Module]
) -> Iterator[WeightReads]:
    """Record every read of a module's `weight` and `bias` outside its own forward pass.

    Each module is of a subclass of its own class meanwhile, which sees the reads: parameters
    are found by `__getattr__`, so there is nothing to patch for other modules.
    """
    reads = WeightReads(model)
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(_watched(name, module, reads))
        yield reads


@contextmanager
def _watched(name: str, module: nn.Module, reads: WeightReads) -> Iterator[None]:
    original = type(module)

    def read(self: nn.Module, attribute: str) -> Any:
        if attribute in _TENSORS:
            reads.note(name, self, attribute)
        return original.__getattr__(self, attribute)

    before, after = (lambda *_: reads.start(name)), (lambda *_: reads.stop(name))
    module.__class__ = type(original.__name__, (original,), {"__getattr__": read})
    try:
        with attach_hooks([(module, before)], [(module, after)], always_call=True):
            yield
    finally:
        module.__class__ = original
