"""One writer per output directory: a lock file beside it that names the process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spectrim.errors import InputError


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Hold `lock`, or take over a dead process's. Raises InputError if a live one holds it."""
    if not _create(lock):
        holder = _read(lock)
        if not _is_dead(holder) or not _take_away(lock, holder) or not _create(lock):
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
        file.write(f"{os.getpid()} {socket.gethostname()}")
    return True


def _read(lock: Path) -> str:
    try:
        return lock.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _is_dead(holder: str) -> bool:
    """True only for a process of this machine that certainly no longer runs."""
    pid, _, host = holder.partition(" ")
    if host != socket.gethostname() or not pid.isdigit() or int(pid) < 1:
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


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
