"""Where a sequential refinement stands: the layers it has rewritten, and how it can go on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import CheckpointError, ModelError
from spectrim.layers import FactoredLinear
from spectrim.models.hooks import evaluation_mode
from spectrim.models.replace import factored_layers, replace_layer, shared_bases
from spectrim.runtime.cache import exists
from spectrim.runtime.files import read_tensors, write_tensors
from spectrim.training.progress import RunContext

Layers = dict[str, FactoredLinear]


@contextmanager
def rewritable_layers(model: nn.Module) -> Iterator[Layers]:
    """The layers to rewrite as they stand, by name; the model is in evaluation mode inside.

    They are the factored ones that store any factors of their rank without loss, each by
    itself. After an error they stand there again. Raises ModelError for a model that has
    none, or that is not in float32.
    """
    given = _rewritable(model)
    _check(model, given)
    with evaluation_mode(model):
        try:
            yield given
        except BaseException:
            put_back(model, given)
            raise


def put_back(model: nn.Module, layers: Layers) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def _rewritable(model: nn.Module) -> Layers:
    together = {name for group in shared_bases(model).values() for name in group}
    return {
        name: layer
        for name, layer in factored_layers(model)
        if layer.LOSSLESS and name not in together
    }


def _check(model: nn.Module, layers: Layers) -> None:
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no factored layer that can be rewritten by itself; "
            "compress it with layers of the kind lowrank or pivoted first"
        )
    for name, layer in layers.items():
        dtype = next(layer.parameters()).dtype
        if dtype != torch.float32:
            raise ModelError(
                f"{name} is in {dtype}; refine a model in float32 (`model.float()`) "
                "and cast it afterwards"
            )


@dataclass
class State:
    """One walk's layers (name -> the tensors of its new form) with the objective before and
    after, and the figures of walks that are done."""

    walk: str = ""
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Atomic. Raises InputError when the place cannot be written."""
        tensors = {
            f"{name}|{entry}": tensor
            for name, entries in self.layers.items()
            for entry, tensor in entries.items()
        }
        rest = {"walk": self.walk, "errors": self.errors, "figures": self.figures}
        write_tensors(path, tensors, rest | {"layers": list(self.layers)})

    @classmethod
    def load(cls, path: Path) -> State:
        """Raises CheckpointError for a file that holds none."""
        tensors, rest = read_tensors(path)
        try:
            layers: dict[str, dict[str, Tensor]] = {name: {} for name in rest["layers"]}
            for key, tensor in tensors.items():
                name, entry = key.split("|")
                layers[name][entry] = tensor
            return cls(rest["walk"], layers, dict(rest["errors"]), dict(rest["figures"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds no sequential refinement") from error


class Keeper:
    """Keeps a `State` in the workspace: now and then on the way, and at the end."""

    def __init__(self, progress: RunContext, key: dict[str, Any]):
        self.progress = progress
        self.path = progress.cache.path("refinement", key)
        self.state = State()
        self.finished = self._taken_up(self.path)
        if not self.finished:
            self._taken_up(self._partial)
        self._saved = time.monotonic()

    @property
    def _partial(self) -> Path | None:
        return None if self.path is None else self.path.with_suffix(".partial")

    def _taken_up(self, path: Path | None) -> bool:
        if path is None or not exists(path):
            return False
        try:
            self.state = State.load(path)
        except CheckpointError as error:
            warnings.warn(f"starting the refinement again: {error}", stacklevel=5)
            return False
        return True

    def now_and_then(self) -> None:
        waited = time.monotonic() - self._saved
        if self._partial is not None and waited >= self.progress.seconds_between_saves:
            self.state.save(self._partial)
            self._saved = time.monotonic()

    def finish(self) -> None:
        if self.path is None or self._partial is None:
            return
        if not self.finished:
            self.state.save(self.path)
        self._partial.unlink(missing_ok=True)


def store(state: State, name: str, layer: nn.Module) -> None:
    state.layers[name] = {key: tensor.clone() for key, tensor in layer.state_dict().items()}


def restore(model: nn.Module, name: str, tensors: dict[str, Tensor]) -> None:
    """The layer as it was stored, in place of one of the same kind, shape and rank."""
    present: Any = model.get_submodule(name)
    shape = present.out_features, present.in_features
    bias = any(key.endswith("bias") for key in tensors)
    layer = type(present).empty(shape, present.rank, bias)
    try:
        layer.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"the stored {name} does not fit this model: {error}") from error
    replace_layer(model, name, layer)
