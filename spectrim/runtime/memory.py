"""The memory of this process, and returning freed memory to the system.

The C library keeps freed blocks below a threshold that it raises as a program runs, so that
a process looks larger than what it uses. With a fixed threshold every large tensor is returned
as soon as it is freed, at the price of allocating it again.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_THRESHOLD_OPTION, _THRESHOLD = -3, 2**18


def trim_memory() -> None:
    """Return freed memory to the system, where the C library can."""
    gc.collect(1)  # what a step left in cycles; a full collection takes a second
    if (library := _library()) is not None:
        library.malloc_trim(0)


def return_large_blocks() -> None:
    """Return blocks of a quarter MiB and more to the system whenever they are freed."""
    if (library := _library()) is not None:
        library.mallopt(_THRESHOLD_OPTION, _THRESHOLD)


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Return the most memory that this process held.

    `getrusage` begins with the peak of the process that started this one, so on Linux the
    kernel's own figure is read; psutil has none there.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "malloc_trim") else None
