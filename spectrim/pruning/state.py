"""The state of a pruning run, from which an interrupted run resumes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import CheckpointError
from spectrim.pruning.spectral import SpectralLinear
from spectrim.runtime.files import read_tensors, write_tensors


@dataclass(frozen=True)
class PruneStep:
    """One pruning. Fractions of the dense layers' weights; losses in nats per scored token.

    predicted: the removed bases' importance, summed; measured: what the scoring loss did.
    removed: bases by layer.
    """

    number: int
    step: int
    kept_before: float
    kept_after: float
    bases: int
    removed: dict[str, int]
    predicted: float | None
    measured: float
    loss: float
    standard_error: float | None
    passes: float
    seconds: float


@dataclass
class PruningState:
    """The position of a pruning run.

    Attributes:
        chosen: which of the decomposition's bases are left, by layer.
        losses: the loss of every tuning step so far.
        moments: AdamW's, by parameter and name of the moment.
    """

    chosen: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    prune_steps: list[PruneStep] = field(default_factory=list)
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Return the number of tuning steps that are done."""
        return len(self.losses)

    @classmethod
    def start(cls, layers: dict[str, SpectralLinear]) -> PruningState:
        return cls({name: torch.arange(layer.bases) for name, layer in layers.items()})

    def save(self, path: Path, layers: dict[str, SpectralLinear]) -> None:
        """Write the state atomically. Raises InputError for a place that is not writable."""
        tensors = {f"chosen|{name}": chosen for name, chosen in self.chosen.items()}
        for name, parameter in parameters_of(layers).items():
            tensors[f"parameter|{name}"] = parameter
        for name, entries in self.moments.items():
            tensors |= {f"{entry}|{name}": tensor for entry, tensor in entries.items()}
        events = [asdict(event) for event in self.prune_steps]
        metadata = {"losses": self.losses, "events": events}
        write_tensors(path, tensors, metadata)

    @classmethod
    @torch.no_grad()
    def load(cls, path: Path, layers: dict[str, SpectralLinear]) -> PruningState:
        """Load into untouched `layers`, or not at all. Raises CheckpointError on a misfit."""
        tensors, metadata = read_tensors(path)
        try:
            state = cls._read(tensors, metadata, layers)
            values = {n: tensors[f"parameter|{n}"] for n in parameters_of(layers)}
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(f"{path} holds no pruning of this model") from error
        for name, layer in layers.items():
            layer.prune(state.chosen[name])
        for name, parameter in parameters_of(layers).items():
            parameter.copy_(values[name])
        return state

    @classmethod
    def _read(
        cls, tensors: dict[str, Tensor], metadata: Any, layers: dict[str, SpectralLinear]
    ) -> PruningState:
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            entry, _, name = key.partition("|")
            if entry not in ("chosen", "parameter"):
                moments.setdefault(name, {})[entry] = tensor
        chosen = {name: tensors[f"chosen|{name}"] for name in layers}
        for name, layer in layers.items():
            if int(chosen[name].max()) >= layer.bases:
                raise ValueError("a base that this layer has not")
            if tensors[f"parameter|{name}.new_left"].shape != layer.new_left.shape:
                raise ValueError("other new bases")
        events = [PruneStep(**entry) for entry in metadata["events"]]
        return cls(chosen, list(metadata["losses"]), events, moments)


def parameters_of(layers: dict[str, SpectralLinear]) -> dict[str, nn.Parameter]:
    """Return what is trained, by name: coordinates, new bases, and bases that are free."""
    found: dict[str, nn.Parameter] = {}
    for name, layer in layers.items():
        found[f"{name}.coordinates"] = layer.coordinates.value
        found[f"{name}.new_left"] = layer.new_left
        found[f"{name}.new_right"] = layer.new_right
        if isinstance(layer.left, nn.Parameter) and isinstance(layer.right, nn.Parameter):
            found[f"{name}.left"] = layer.left
            found[f"{name}.right"] = layer.right
    return found
