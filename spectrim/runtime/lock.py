"""One writer per output directory: a lock file beside it that names the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spectrim.errors import InputError
from spectrim.runtime.processes import is_dead, this_process


@contextmanager
def lock(lock: Path) -> Iterator[None]:
    """Hold `lock`, or take over a dead process's. Raises InputError if a live one holds it."""
    if not _create(lock):
        holder = _read(lock)
        if not is_dead(holder) or not _take_away(lock, holder) or not _create(lock):
            raise InputError(
                f"another run ({holder or 'unknown process'}) is writing here; wait for it, "
                f"choose another directory, or delete {lock} if no run is alive"
            )
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _create(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(this_process())
    return True


def _read(lock: Path) -> str:
    try:
        return lock.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _take_away(lock: Path, holder: str) -> bool:
    """Remove a dead holder's lock, unless somebody else just did and made his own."""
    aside = lock.with_name(f"{lock.name}.{os.getpid()}")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return True
    if _read(aside) != holder:
        os.rename(aside, lock)
        return False
    aside.unlink()
    return True
