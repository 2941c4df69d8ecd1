"""The number of threads on a shared machine.

Threads that share a core wait for each other at every product: two on a busy two-core
machine can be ten times slower than one.
"""

from __future__ import annotations

import os

import torch


def leave_busy_cores() -> None:
    """Use the cores that were idle over the last minute, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    idle = torch.get_num_threads() - round(os.getloadavg()[0])
    torch.set_num_threads(max(1, idle))
