"""Peak bytes of what a run allocates on top of what was there before it.

On a GPU the allocator's own peak; on a CPU the running sum of its allocations and frees,
which the profiler reports one by one (workspaces inside a BLAS library are not among them).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_activation_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The run is made twice: what it keeps for later runs is not counted."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _profiled_peak(run)


def _profiled_peak(run: Callable[[], Any]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes its starts to standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
