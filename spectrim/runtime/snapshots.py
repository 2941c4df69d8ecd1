"""Snapshots of unfinished work, from which an interrupted run resumes.

    KIND-HASH.safetensors    a finished entry of the cache
    KIND-HASH.parts/NAME     snapshots of an entry that is not finished

They are written every few seconds at most and removed when the entry itself is stored. Two
runs that make the same entry share them: a snapshot holds nothing but its entry's own values,
and saving and removing exclude each other.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from spectrim.runtime import distributed
from spectrim.runtime.cache import load_if_valid, load_if_valid_locally
from spectrim.runtime.files import lock_file

T = TypeVar("T")
SECONDS_BETWEEN_SAVES = 20.0
"""The work that an interrupted run repeats at most, unless a save takes long."""
LARGEST_SHARE = 1 / 30
"""Of a run's time for saves: large ones are rarer."""


class Snapshots:
    """The snapshots beside the cache entry `entry`; without an entry nothing is stored.

    Each of several processes has a directory of its own, unless they are `shared`: then the
    main process alone saves, and all of them load the same.
    """

    def __init__(self, entry: Path | None, every: float | None = None, shared: bool = False):
        suffix = ".parts" if shared else f"{_shard()}.parts"
        self.directory = None if entry is None else entry.with_suffix(suffix)
        self._shared = shared
        self._writes = not shared or distributed.is_main_process()
        self._every = SECONDS_BETWEEN_SAVES if every is None else every
        self._saved = time.monotonic()
        self._cost = 0.0

    @classmethod
    def inside(cls, directory: Path | None) -> Snapshots:
        """Return snapshots in a directory of their own, which are kept."""
        snapshots = cls(None)
        snapshots.directory = directory
        return snapshots

    def due(self) -> bool:
        """Return whether the last save is long enough ago, and there is a place to save to."""
        waited = time.monotonic() - self._saved
        interval = max(self._every, self._cost / LARGEST_SHARE) if self._every > 0 else 0.0
        return self.directory is not None and self._writes and waited >= interval

    def save(self, name: str, write: Callable[[Path], object]) -> None:
        """Store a snapshot by `write`, which has to be atomic.

        Raises:
            InputError: the place cannot be written to.
        """
        if self.directory is None or not self._writes:
            return
        begun = time.monotonic()
        with self._lock():
            write(self.directory / name)
        self._saved = time.monotonic()
        self._cost = self._saved - begun

    def load(self, name: str, read: Callable[[Path], T]) -> T | None:
        """Return the snapshot `name`; None if it is absent or, with a warning, damaged."""
        path = None if self.directory is None else self.directory / name
        return load_if_valid(path, read) if self._shared else load_if_valid_locally(path, read)

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names of the stored snapshots that match `pattern`, in order."""
        found = [] if self.directory is None else self.directory.glob(pattern)
        return sorted(path.name for path in found if not path.name.startswith("."))

    def finish(self) -> None:
        """Remove all snapshots; to be called when the entry is stored."""
        if self.directory is not None and self._writes and self.directory.exists():
            with self._lock():
                shutil.rmtree(self.directory, ignore_errors=True)

    def _lock(self) -> AbstractContextManager[None]:
        assert self.directory is not None
        return lock_file(self.directory.with_name(f".{self.directory.name}.lock"))


def _shard() -> str:
    count = distributed.num_processes()
    return "" if count == 1 else f".{distributed.process_index()}-of-{count}"
