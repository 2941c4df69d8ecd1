"""Calibrations in several files, which are read on access."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from spectrim.errors import CheckpointError
from spectrim.runtime.files import read_header, read_some
from spectrim.statistics._io import load_calibration, save_calibration
from spectrim.statistics._result import Calibration, State


class StoredStates(Mapping[str, State]):
    """The states of one statistic by layer; each access reads a file again."""

    def __init__(self, statistic: str, files: Mapping[str, tuple[Path, tuple[str, ...]]]):
        self._statistic = statistic
        self._files = files

    def __getitem__(self, key: str) -> State:
        path, entries = self._files[key]
        names = {f"{self._statistic}|{key}|{entry}": entry for entry in entries}
        return {names[name]: tensor for name, tensor in read_some(path, names).items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass
class Parts:
    """Calibrations of disjoint layers or statistics, by name; in memory without a directory."""

    directory: Path | None
    held: dict[str, Calibration] = field(default_factory=dict)

    def put(self, name: str, part: Calibration) -> None:
        """Store a part.

        Raises:
            InputError: the place cannot be written to.
        """
        if self.directory is None:
            self.held[name] = part
        else:
            save_calibration(part, self.path(name))

    def get(self, name: str) -> Calibration:
        if self.directory is None:
            return self.held[name]
        return load_calibration(self.path(name))

    def drop(self, name: str) -> None:
        if self.directory is None:
            self.held.pop(name, None)
        else:
            self.path(name).unlink(missing_ok=True)

    def union(self, names: Iterable[str], provenance: dict[str, Any]) -> Calibration:
        """Return the union of the parts. Raises CheckpointError for a damaged file."""
        if self.directory is None:
            return _union([self.held[name] for name in names], provenance)
        return stored_calibration([self.path(name) for name in names], provenance)

    def path(self, name: str) -> Path:
        """Return where a part is stored."""
        assert self.directory is not None
        return self.directory / f"{name}.safetensors"


def stored_calibration(paths: Iterable[Path], provenance: dict[str, Any]) -> Calibration:
    """Return the union of the calibrations at `paths`, whose states are read on access."""
    return _union([_lazy(path) for path in paths], provenance)


def open_calibration(path: Path) -> Calibration:
    """Return the calibration in a file, whose states are read on access.

    Raises:
        CheckpointError: the file, which is verified as a whole, is damaged.
    """
    load_calibration(path)
    return _lazy(path)


def _lazy(path: Path) -> Calibration:
    names, metadata = read_header(path)
    files: dict[str, dict[str, tuple[Path, tuple[str, ...]]]] = {}
    try:
        for name in names:
            statistic, key, entry = name.split("|")
            by_layer = files.setdefault(statistic, {})
            by_layer[key] = (path, (*by_layer.get(key, (path, ()))[1], entry))
        states: dict[str, Any] = {name: StoredStates(name, f) for name, f in files.items()}
        groups, counts = metadata["groups"], metadata["counts"]
        return Calibration(groups, counts, states, metadata["tokens"], metadata["provenance"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a calibration: {error}") from error


def _union(parts: list[Calibration], provenance: dict[str, Any]) -> Calibration:
    groups: dict[str, str] = {}
    counts: dict[str, float] = {}
    states: dict[str, dict[str, Mapping[str, Tensor]]] = {}
    for part in parts:
        groups |= part.groups
        for name, count in part.counts.items():
            counts[name] = max(count, counts.get(name, 0))
        for statistic, by_layer in part.states.items():
            states.setdefault(statistic, {}).update(_items(by_layer))
    tokens = max(part.tokens for part in parts)
    whole: dict[str, Any] = {name: _combined(name, by) for name, by in states.items()}
    return Calibration(groups, counts, dict(sorted(whole.items())), tokens, provenance)


def _items(by_layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of a mapping; of a stored one their files instead."""
    return dict(by_layer._files) if isinstance(by_layer, StoredStates) else dict(by_layer)


def _combined(statistic: str, by_layer: dict[str, Any]) -> Mapping[str, State]:
    stored = any(isinstance(value, tuple) for value in by_layer.values())
    return StoredStates(statistic, by_layer) if stored else by_layer
