"""What a run under way has made so far, so that one that was stopped goes on from there.

    ENTRY.parts/00000.safetensors, ...   layers as they are decomposed, some to a file
    ENTRY.parts/measured.json            figures of forward passes

Both are written now and then, and are gone when the entry itself is stored.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from spectrim.errors import CheckpointError, InputError
from spectrim.linalg.truncated import Factors
from spectrim.planning import Decomposition
from spectrim.planning.probe import Probe
from spectrim.runtime import distributed
from spectrim.runtime.cache import SECONDS_BETWEEN_SAVES, load_if_valid_locally
from spectrim.runtime.files import read_mapping, write_text


class Snapshots:
    """In a directory beside `entry`; without one nothing is kept. Of several processes each
    has its own."""

    def __init__(self, entry: Path | None, seconds: float | None = None):
        own = (
            f".{distributed.process_index()}-of-{distributed.num_processes()}"
            if distributed.num_processes() > 1
            else ""
        )
        self.directory = None if entry is None else entry.with_suffix(f"{own}.parts")
        self._seconds = SECONDS_BETWEEN_SAVES if seconds is None else seconds
        self._saved = time.monotonic()
        self._stored: set[str] = set()
        self._figures: dict[str, float] = {}

    def decomposed(self) -> Decomposition | None:
        """The layers that are stored; a damaged file is as good as none, with a warning."""
        result: Decomposition | None = None
        for path in self._files():
            if (part := load_if_valid_locally(path, Decomposition.load)) is None:
                continue
            self._stored |= set(part.shapes)
            if result is None:
                result = part
            else:
                result.update(part)
        return result

    def keep_layers(self, result: Decomposition) -> None:
        """Those of `result` that are not stored yet, now and then."""
        if self.directory is None or not self._due():
            return
        new = [name for name in result.shapes if name not in self._stored]
        result.select(new).save(self.directory / f"{len(self._files()):05d}.safetensors")
        self._stored |= set(new)
        self._saved = time.monotonic()

    def figure(self, name: str, compute: Callable[[], float]) -> float:
        """Under `name`, computed where it is not stored, and stored now and then."""
        if not self._figures:
            self._figures = self._read_figures()
        if name not in self._figures:
            self._figures[name] = compute()
            if self.directory is not None and self._due():
                write_text(self.directory / "measured.json", json.dumps(self._figures))
                self._saved = time.monotonic()
        return self._figures[name]

    def remove(self) -> None:
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _due(self) -> bool:
        return time.monotonic() - self._saved >= self._seconds

    def _files(self) -> list[Path]:
        return [] if self.directory is None else sorted(self.directory.glob("*.safetensors"))

    def _read_figures(self) -> dict[str, float]:
        path = None if self.directory is None else self.directory / "measured.json"
        return load_if_valid_locally(path, _figures_in) or {}


def _figures_in(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in read_mapping(path).items()}
    except (InputError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no figures: {error}") from error


@dataclass(frozen=True)
class ResumableProbe:
    """A probe whose divergences are kept in `pieces`."""

    probe: Probe
    pieces: Snapshots

    def divergence(self, factors: Mapping[str, Factors], ranks: Mapping[str, int]) -> float:
        text = json.dumps([list(self.probe.ids.shape), dict(ranks)], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:20]
        return self.pieces.figure(name, lambda: self.probe.divergence(factors, ranks))
