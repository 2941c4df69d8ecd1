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
        layers: the watched layers by name.
        called: layers that were called in evaluation mode.
        read: layers whose weight or bias was read.
        rewritten: layers whose weight was another one later than when it was first read.
    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    called: set[str] = field(default_factory=set)
    read: dict[str, None] = field(default_factory=dict)
    rewritten: dict[str, None] = field(default_factory=dict)
    _held: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    _written: set[str] = field(default_factory=set)
    _biases: set[str] = field(default_factory=set)
    _running: set[str] = field(default_factory=set)

    def replaced(self) -> list[str]:
        """Return the layers that are read in place of being called, or written to."""
        others = self._biases | self._written
        return [name for name in self.read if name not in self.called or name in others]

    def settle(self) -> None:
        """Compare the weights that were read with what they are now, and let go of them.

        Of a part that was not in memory when it was read, it is only seen that it was written
        to: that is lost where the part is loaded.
        """
        for name, (before, version) in self._held.items():
            now = before if before.is_meta else _weight(self.layers[name])
            if now._version != version:
                self._written.add(name)
            if now._version != version if now.is_meta else not torch.equal(before, now):
                self.rewritten[name] = None
        self._held.clear()

    def note(self, name: str, module: nn.Module, attribute: str) -> None:
        if name in self._running:
            return
        self.read[name] = None
        if name not in self._held:
            weight = _weight(module)
            held = weight if weight.is_meta else weight.detach().clone()
            self._held[name] = (held, weight._version)
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
    reads = WeightReads(model, modules)
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
