"""Check that a place has room for the files that will be written there."""

from __future__ import annotations

import shutil
from pathlib import Path

from spectrim.errors import InputError


def check_space(directory: Path, total: int, largest: int) -> None:
    """Raise InputError where `total` bytes in files of up to `largest` cannot be written.

    The directory need not exist yet.
    """
    place = directory.expanduser().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < total:
        raise InputError(
            f"{directory} will take at least {total:,} bytes, and {free:,} are free there; "
            "free some space or choose another place"
        )
    if (limit := _file_limit()) is not None and limit < largest:
        raise InputError(
            f"this shell allows files of {limit:,} bytes (ulimit -f), and the result has one "
            f"of at least {largest:,}; raise the limit"
        )


def _file_limit() -> int | None:
    """Return the bytes that a file of this process may have; None without a limit."""
    try:
        import resource
    except ImportError:  # not on every system
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
