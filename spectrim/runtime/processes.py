"""Who wrote a file that is in nobody's hands now: a process by number, machine and start."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def this_process() -> str:
    """The number, the machine, and where it is known the start: numbers are given again."""
    return f"{os.getpid()} {socket.gethostname()} {_started(os.getpid())}".rstrip()


def is_dead(holder: str) -> bool:
    """True only for a process of this machine that certainly no longer runs."""
    pid, host, start = [*holder.split(" "), "", "", ""][:3]
    if host != socket.gethostname() or not pid.isdigit() or int(pid) < 1:
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    now = _started(int(pid))
    return bool(start and now) and start != now


def _started(pid: int) -> str:
    """In ticks since the machine started; "" where it does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
