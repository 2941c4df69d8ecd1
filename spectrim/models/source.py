"""Sources of a model's parts: all in memory, or each in memory only while it is used.

A step that goes through a model part by part takes a `ModelSource` and so runs on both kinds. A
step that needs several parts at once needs a source that is `whole`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn

from spectrim.models.fingerprint import model_fingerprint


class ModelSource(Protocol):
    """A model in parts, of which one at a time has to be in memory."""

    @property
    def model(self) -> Any:
        """The model's structure; only the tensors of resident parts have values."""

    @property
    def whole(self) -> bool:
        """Whether all parts are resident at all times."""

    @property
    def parts(self) -> Sequence[str]:
        """Names of the modules that are resident by themselves, "" for the model as one."""

    @property
    def fingerprint(self) -> Any:
        """JSON values that change with all that the model's forward pass depends on."""

    def part_of(self, layer: str) -> str:
        """Return the part that holds a layer."""

    def resident(self, name: str) -> AbstractContextManager[nn.Module]:
        """Keep a part in memory until the context ends."""

    def state(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a resident part that checkpoints hold, by their full names."""

    def running(self, released: Callable[[], object]) -> AbstractContextManager[None]:
        """Let the whole model be called, each part being resident as it runs.

        released: called whenever a part is about to leave memory.
        """


class ResidentModel:
    """A model in memory: one part, which is always resident."""

    whole = True
    parts = ("",)

    def __init__(self, model: nn.Module):
        self.model: Any = model

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.model)

    def part_of(self, layer: str) -> str:
        return ""

    def resident(self, name: str) -> AbstractContextManager[nn.Module]:
        return nullcontext(self.model)

    def state(self, name: str) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def running(self, released: Callable[[], object]) -> AbstractContextManager[None]:
        return nullcontext()


def open_source(model: nn.Module | ModelSource) -> ModelSource:
    """Return the source of a model in memory, or the given source."""
    return ResidentModel(model) if isinstance(model, nn.Module) else model
