"""The rows of a table, and their store: one file each, named by its key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spectrim.errors import InputError
from spectrim.runtime import distributed
from spectrim.runtime.cache import store
from spectrim.runtime.files import read_mapping, write_text
from spectrim.version import __version__

FORMAT = "spectrim-bench-1"
TOLERATED = 1.02
"""By how much a measured time may be above its budget: it is measured again each time."""


@dataclass(frozen=True)
class DenseResult:
    """The original: `file_bytes` in the dtype of the results, the other figures by text."""

    file_bytes: int
    loss: dict[str, float]
    perplexity: dict[str, float]


@dataclass(frozen=True)
class BenchRow:
    """One compressed model as it loads from disk. Losses in nats per token.

    Attributes:
        kept: layer_bytes / bytes of the same layers left dense, without the original biases.
        layer_bytes: of the compressed layers in the file: weights, indices, biases.
        allowed_bytes: of the same layers by the budget; None for a latency budget.
        planned_time, time: for a latency budget, the share of the dense layers' time as
            planned, and as measured, fused, in the stored dtype.
        exceeds: whether the budget of bytes or measured time is exceeded.
        loss_increase, perplexity: by text.
        kl_divergence: from the original on the first text.
        seconds: by stage, without stages whose result was in the cache. The pass for all rows
            of a call is in each of them.
        peak_memory: highest resident memory above what was in use before the row.
        error: why there are no figures, else None.
    """

    name: str
    budget: float
    recipe: dict[str, Any]
    kept: float | None = None
    layer_bytes: int | None = None
    allowed_bytes: int | None = None
    planned_time: float | None = None
    time: float | None = None
    file_bytes: int | None = None
    predicted_loss: float | None = None
    loss_increase: dict[str, float] = field(default_factory=dict)
    perplexity: dict[str, float] = field(default_factory=dict)
    kl_divergence: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int | None = None
    error: str | None = None

    @property
    def exceeds(self) -> bool:
        if self.time is not None:
            return self.time > TOLERATED * self.budget
        return self.allowed_bytes is not None and (self.layer_bytes or 0) > self.allowed_bytes


class RowStore:
    """A directory of finished rows; `None` stores nothing. A damaged file counts as absent."""

    def __init__(self, root: Path | None):
        self.root = root
        if root is not None:
            _make(root)

    def row(self, key: Mapping[str, Any], name: str) -> BenchRow | None:
        """Return the row under any name. Only the main process reads the directory."""
        found = self._load(self._path("row", key), BenchRow)
        return None if found is None else replace(found, name=name)

    def dense(self, key: Mapping[str, Any]) -> DenseResult | None:
        return self._load(self._path("dense", key), DenseResult)

    def keep(self, key: Mapping[str, Any], value: BenchRow | DenseResult) -> None:
        """Store a row. Raises InputError if the directory cannot be written to."""
        path = self._path("row" if isinstance(value, BenchRow) else "dense", key)
        text = json.dumps(asdict(value), indent=1) + "\n"
        store(path, lambda place: write_text(place, text))

    def _path(self, kind: str, key: Mapping[str, Any]) -> Path | None:
        if self.root is None:
            return None
        text = json.dumps([FORMAT, __version__, key], sort_keys=True)
        return self.root / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"

    def _load(self, path: Path | None, kind: type) -> Any:
        return distributed.run_on_main(lambda: self._read(path, kind))

    def _read(self, path: Path | None, kind: type) -> Any:
        if path is None or not path.exists():
            return None
        try:
            return TypeAdapter(kind).validate_python(read_mapping(path))
        except (InputError, ValidationError):
            return None


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {root}: {error.strerror or error}") from error
