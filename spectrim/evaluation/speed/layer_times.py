"""The time of one layer, dense and at a few ranks, on this machine.

The runs alternate between enough copies that none is still in a cache when it is used again:
in a model, too, every weight comes from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.allocation import LayerTimes
from spectrim.evaluation.speed.random_models import random_layer
from spectrim.evaluation.speed.timing import time_interleaved
from spectrim.inference.column_major import put_in_best_order
from spectrim.inference.fusion import Execution
from spectrim.layers import layer_class

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Ranks that are timed, as shares of the highest that stores less than the dense layer."""
BYTES = 48 * 2**20
MOST_COPIES = 24
ROUNDS = 7


@dataclass(frozen=True)
class TimingSpec:
    """Device and dtype, and `tokens` at once; fused as by `spectrim.fuse`, or plain."""

    device: torch.device
    dtype: torch.dtype
    tokens: int
    fused: bool = True

    def key(self) -> dict[str, Any]:
        """Return all that times depend on besides the layer."""
        name = "cpu"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        return {
            "device": name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "dtype": str(self.dtype),
            "tokens": self.tokens,
            "fused": self.fused,
        }


@torch.no_grad()
def layer_times(shape: tuple[int, int], kind: str, place: TimingSpec) -> LayerTimes:
    """Measure weight shape (out, in).

    Raises InputError for a layer type whose time depends on more than its rank.
    """
    ranks = _ranks(shape, kind)
    copies = min(MOST_COPIES, 1 + BYTES // (shape[0] * shape[1] * place.dtype.itemsize))
    x = torch.zeros(1, place.tokens, shape[1], dtype=place.dtype, device=place.device)
    runs = {"dense": _run([_dense(shape, place) for _ in range(copies)], x)}
    for rank in ranks:
        runs[str(rank)] = _run(
            [timed_layer(shape, kind, rank, place) for _ in range(copies)], x
        )
    times = time_interleaved(runs, ROUNDS, place.device)
    dense = times.median("dense") / copies
    seconds = tuple(dense / times.speedup(str(rank), "dense") for rank in ranks)
    return LayerTimes(dense, ranks, seconds)


def _ranks(shape: tuple[int, int], kind: str) -> tuple[int, ...]:
    cost, dense = layer_class(kind).cost, shape[0] * shape[1]
    most = max((r for r in range(1, min(shape) + 1) if cost(*shape, r) < dense), default=1)
    return tuple(sorted({max(1, round(share * most)) for share in SHARES}))


def _run(layers: list[nn.Module], x: Tensor) -> Callable[[], None]:
    def run() -> None:
        for layer in layers:
            layer(x)

    return run


def _dense(shape: tuple[int, int], place: TimingSpec) -> nn.Module:
    return nn.Linear(shape[1], shape[0], False, place.device, place.dtype)


def timed_layer(
    shape: tuple[int, int], kind: str, rank: int, place: TimingSpec, bias: bool = False
) -> nn.Module:
    """Return a random layer, prepared for timing."""
    layer = random_layer(shape, kind, rank, bias).to(place.device, place.dtype)
    if place.fused:
        layer.execution = Execution()
        put_in_best_order(layer)
    return layer
