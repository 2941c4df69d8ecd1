"""The rows of a table, and their store: one file each, named by its key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spectrim.errors import DamagedFileError, InputError
from spectrim.runtime import distributed
from spectrim.runtime.files import read_values, write_values
from spectrim.runtime.snapshots import Snapshots
from spectrim.version import __version__

FORMAT = "spectrim-bench-2"
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
    """A directory of finished rows; `None` stores nothing.

    Only the main process reads and writes it. A damaged row counts as absent, with a warning.
    """

    def __init__(self, root: Path | None):
        self._snapshots = Snapshots.inside(root)
        if root is not None:
            _make(root)

    def row(self, key: Mapping[str, Any], name: str) -> BenchRow | None:
        """Return the row under any name."""
        found = self._load("row", key, BenchRow)
        return None if found is None else replace(found, name=name)

    def dense(self, key: Mapping[str, Any]) -> DenseResult | None:
        return self._load("dense", key, DenseResult)

    def keep(self, key: Mapping[str, Any], value: BenchRow | DenseResult) -> None:
        """Store a row. Raises InputError if the directory cannot be written to."""
        name = _file_name("row" if isinstance(value, BenchRow) else "dense", key)
        write = partial(write_values, values=asdict(value))
        distributed.run_on_main(lambda: self._snapshots.save(name, write))

    def _load(self, kind: str, key: Mapping[str, Any], cls: type) -> Any:
        name = _file_name(kind, key)
        return distributed.run_on_main(lambda: self._snapshots.load(name, partial(_read, cls)))


def _file_name(kind: str, key: Mapping[str, Any]) -> str:
    text = json.dumps([FORMAT, __version__, key], sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _read(cls: type, path: Path) -> Any:
    try:
        return TypeAdapter(cls).validate_python(read_values(path))
    except ValidationError as error:
        raise DamagedFileError(f"{path} is no row of a table; delete it") from error


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {root}: {error.strerror or error}") from error
