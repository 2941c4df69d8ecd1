"""The cache of long results between runs: `$SPECTRIM_CACHE`, or ~/.cache/spectrim.

Every entry is named by a hash of all it depends on (the model with its configuration and code,
tokens, settings), so an entry is right or absent. Snapshots of work in progress lie beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from spectrim.errors import CheckpointError
from spectrim.runtime import distributed
from spectrim.runtime.files import remove_abandoned
from spectrim.version import __version__

Entry = TypeVar("Entry")


class Cache:
    """A directory of entries; with the root `None` nothing is stored.

    share: also hold what steps of one command share, such as the tokens of its text.
    """

    def __init__(self, root: Path | None, share: bool = False):
        self.root = root
        self._shared: dict[Hashable, Any] | None = {} if share else None

    def once(self, key: Hashable, make: Callable[[], Entry]) -> Entry:
        """Return what `make` gives, made once for each key if this cache shares values."""
        if self._shared is None:
            return make()
        if key not in self._shared:
            self._shared[key] = make()
        found: Entry = self._shared[key]
        return found

    @classmethod
    def default(cls) -> Cache:
        place = os.environ.get("SPECTRIM_CACHE")
        return cls(Path(place) if place else Path.home() / ".cache" / "spectrim")

    def path(self, kind: str, key: dict[str, Any]) -> Path | None:
        if self.root is None:
            return None
        text = json.dumps([__version__, key], sort_keys=True)
        return (
            self.root / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
        )


@contextmanager
def lasting(cache: Cache | None) -> Iterator[Cache]:
    """Yield a cache that stores entries at least until the context ends."""
    if cache is not None and cache.root is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="spectrim-") as directory:
        yield Cache(Path(distributed.all_gather(directory)[0]))


def load_if_valid(path: Path | None, load: Callable[[Path], Entry]) -> Entry | None:
    """Return the entry at `path`; None if it is absent or, with a warning, damaged.

    All processes have to call it; None where the entry is missing in one of them.
    """
    entry = load_if_valid_locally(path, load)
    return entry if distributed.all_true(entry is not None) else None


def store(path: Path | None, write: Callable[[Path], object]) -> None:
    """Write the entry at `path` on the main process; nothing without a path.

    All processes have to call it, and an error is raised in all of them.
    """
    if path is not None:
        distributed.run_on_main(lambda: write(path))


def exists(path: Path) -> bool:
    """Return whether an entry exists, and remove what killed processes left beside it."""
    remove_abandoned(path)
    return path.exists()


def load_if_valid_locally(path: Path | None, load: Callable[[Path], Entry]) -> Entry | None:
    """Return the entry as `load_if_valid` does, in this process alone."""
    if path is None or not exists(path):
        return None
    try:
        return load(path)
    except CheckpointError:
        entry = path.parent if path.parent.suffix == ".parts" else path
        kind = entry.name.partition("-")[0].removesuffix(entry.suffix)
        warnings.warn(f"making the {kind} again: {path} is damaged", stacklevel=2)
        return None
