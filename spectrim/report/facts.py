"""All data of a compressed model's page, as one value that is saved beside the model.

`compress` writes it, so that a later page needs neither the original nor a calibration.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from spectrim.errors import CheckpointError
from spectrim.models.kind import CAUSAL, ModelKind, kind_named
from spectrim.runtime.files import read_mapping

FACTS_FILE = "spectrim_report.json"
EVENTS_FILE = "spectrim_events.jsonl"
PAGE_FILE = "spectrim_report.html"
_STRICT = ConfigDict(extra="forbid")


@checked(frozen=True, config=_STRICT)
class LayerFacts:
    """A module of the plan: rank None is dense; `weights` are stored, `loss` is predicted.

    ranks, spectrum, losses: the singular value with number r and the loss at rank r for some
    of r = 1 .. k; empty if the page shows another layer of the same cell.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    kind: str
    weights: int
    loss: float | None = None
    ranks: list[int] = field(default_factory=list)
    spectrum: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@checked(frozen=True, config=_STRICT)
class Point:
    """The stored fraction of the layers' weights and the loss increase in nats per token."""

    kept: float
    loss: float
    budget: float | None = None


@checked(frozen=True, config=_STRICT)
class Part:
    """Bytes of the tensors of one kind, before and after."""

    name: str
    dense: int
    stored: int


@checked(frozen=True, config=_STRICT)
class Continuation:
    """A prompt with the greedy continuations of both models."""

    prompt: str
    dense: str
    compressed: str


@checked(frozen=True, config=_STRICT)
class LayerRatio:
    """A layer's compression error on a text, relative to its mean over the calibration text.

    drift: of its inputs, relative to their size.
    """

    name: str
    ratio: float
    drift: float


@checked(frozen=True, config=_STRICT)
class ReportData:
    """The data of a page.

    Attributes:
        curve: predicted, for all budgets.
        probes: measured plans.
        result: KL divergence from the original, measured on the saved model; None before.
        loss_increase: of the same tokens, measured, nats per token.
        original_perplexity: on the same tokens; for a loss per example its original_loss.
        accuracy: of both models on labels, the original first.
        kind: of the model, which says what a loss is per.
        ratios: of compression errors on a text, the largest first; score: of all layers.
        prunings: the task's loss before and after each pruning of a model pruned for a task.
        itemsize: bytes per stored weight.
        experts: removed ones by block, whose `removed_weights` are in no layer.
    """

    model: str
    method: str
    allocation: str
    layer: str
    budget: float
    kept: float
    predicted_loss: float | None
    layers: list[LayerFacts]
    units: str = "nats per token"
    itemsize: int = 4
    curve: list[Point] = field(default_factory=list)
    probes: list[Point] = field(default_factory=list)
    prunings: list[Point] = field(default_factory=list)
    result: float | None = None
    result_from: str = ""
    agreement: float | None = None
    loss_increase: float | None = None
    original_perplexity: float | None = None
    ratios: list[LayerRatio] = field(default_factory=list)
    score: float | None = None
    score_from: str = ""
    parts: list[Part] = field(default_factory=list)
    texts: list[Continuation] = field(default_factory=list)
    refined: list[str] = field(default_factory=list)
    experts: dict[str, list[int]] = field(default_factory=dict)
    removed_weights: int = 0
    recipe: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    original_loss: float | None = None
    accuracy: tuple[float, float] | None = None
    kind: str = CAUSAL.name
    format: Literal["spectrim-report-1"] = "spectrim-report-1"

    @property
    def of_kind(self) -> ModelKind:
        return kind_named({"kind": self.kind})

    @property
    def dense_weights(self) -> int:
        here = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        return here + self.removed_weights

    @property
    def other_bytes(self) -> float:
        """Return the stored bytes of all but the plan's layers.

        `kept` counts the plan's layers, in numbers of the saved dtype or, if quantized, bytes.
        """
        layers = self.kept * self.dense_weights * self.itemsize
        return sum(part.stored for part in self.parts) - layers

    def to_json(self) -> str:
        values = TypeAdapter(ReportData).dump_python(self, mode="json")
        return json.dumps(values, allow_nan=False) + "\n"


def load_facts(path: Path) -> ReportData:
    """Load the facts.

    Raises InputError for an unreadable file, CheckpointError for invalid values.
    """
    try:
        return TypeAdapter(ReportData).validate_python(read_mapping(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise CheckpointError(f"{path}: {place}: {first['msg']}") from error


@dataclass(frozen=True)
class Cell:
    """The place of a module on the map: its decoder block and its name inside it."""

    block: str
    projection: str


def cell_of(name: str) -> Cell:
    """Return the cell of a module name.

    `model.layers.3.mlp.up_proj` is `mlp.up_proj` of block `model.layers.3`; the number of an
    expert is dropped; a module outside all blocks is a projection of block ''.
    """
    parts = name.split(".")
    first = next((n for n, part in enumerate(parts) if part.isdigit()), None)
    if first is None:
        return Cell("", name)
    inside = [part for part in parts[first + 1 :] if not part.isdigit()]
    return Cell(".".join(parts[: first + 1]), ".".join(inside) or parts[first - 1])
