"""Peak bytes that a run allocates on top of what was allocated before it.

On a GPU the allocator's own peak; on a CPU the running sum of its allocations and frees,
which the profiler reports one by one (without workspaces inside a BLAS library).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from spectrim.models.hooks import attach_hooks

_BLOCK = "spectrim: block"


@dataclass(frozen=True)
class Peaks:
    """Peak bytes of a run.

    activation: at the run's highest. transient: freed within a block (without its output
    and the cache), in the block where that is most.
    """

    activation: int
    transient: int


def peak_bytes(
    run: Callable[[], Any], device: torch.device, blocks: Sequence[nn.Module] = ()
) -> Peaks:
    """Measure the second of two runs: what the first keeps for later runs is not counted."""
    run()
    return (
        _allocator_peaks(run, device, blocks)
        if device.type == "cuda"
        else _profiled(run, blocks)
    )


def peak_activation_bytes(run: Callable[[], Any], device: torch.device) -> int:
    return peak_bytes(run, device).activation


def _allocator_peaks(
    run: Callable[[], Any], device: torch.device, blocks: Sequence[nn.Module]
) -> Peaks:
    highest, transient = [0], [0]

    def note() -> int:
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        highest[0] = max(highest[0], peak)
        return peak

    def enter(*_: Any) -> None:
        note()
        torch.cuda.reset_peak_memory_stats(device)

    def leave(*_: Any) -> None:
        transient[0] = max(transient[0], note() - torch.cuda.memory_allocated(device))

    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with _watch(blocks, enter, leave):
        run()
    note()
    return Peaks(highest[0] - before, transient[0])


def _profiled(run: Callable[[], Any], blocks: Sequence[nn.Module]) -> Peaks:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes its starts to standard error
    inside: list[Any] = []

    def enter(*_: Any) -> None:
        inside.append(record_function(_BLOCK))
        inside[-1].__enter__()

    def leave(*_: Any) -> None:
        inside.pop().__exit__(None, None, None)

    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        _watch(blocks, enter, leave),
    ):
        run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    spans = [
        (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() == _BLOCK
    ]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return Peaks(
        _highest(changes)[0], max((_transient(changes, span) for span in spans), default=0)
    )


def _transient(changes: list[tuple[int, int]], span: tuple[int, int]) -> int:
    inside = [(time, change) for time, change in changes if span[0] <= time <= span[1]]
    highest, last = _highest(inside)
    return highest - max(last, 0)


def _highest(changes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the highest of the running sum, and its last value."""
    live = highest = 0
    for _, change in changes:
        live += change
        highest = max(highest, live)
    return highest, live


def _watch(
    blocks: Sequence[nn.Module], enter: Callable[..., None], leave: Callable[..., None]
) -> AbstractContextManager[None]:
    before, after = [(block, enter) for block in blocks], [(block, leave) for block in blocks]
    return attach_hooks(before, after, prepend=True)
