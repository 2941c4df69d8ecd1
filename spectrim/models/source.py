"""Sources of a model's parts: all in memory, or each in memory only while it is used.

A step that goes through a model part by part takes a `ModelSource` and so runs on both kinds. A
step that needs several parts at once needs the whole model in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import nn


class ModelSource(Protocol):
    """A model in parts, of which one at a time has to be in memory."""

    @property
    def model(self) -> Any:
        """The model's structure; only the tensors of resident parts have values."""

    @property
    def parts(self) -> Sequence[str]:
        """Names of the modules that are resident by themselves, "" for the model as one."""

    def part_of(self, layer: str) -> str:
        """Return the part that holds a layer."""

    def resident(self, name: str) -> AbstractContextManager[nn.Module]:
        """Keep a part in memory until the context ends."""


class ResidentModel:
    """A model in memory: one part, which is always resident."""

    parts = ("",)

    def __init__(self, model: nn.Module):
        self.model: Any = model

    def part_of(self, layer: str) -> str:
        return ""

    def resident(self, name: str) -> AbstractContextManager[nn.Module]:
        return nullcontext(self.model)
