"""The size of an elastic checkpoint that meets a budget of time on this machine."""

from __future__ import annotations

import torch

from spectrim.checkpoint import elastic_sizes, stored_dtype
from spectrim.errors import InputError
from spectrim.evaluation.speed.layer_times import TimingSpec
from spectrim.pipeline.latency_table import time_shapes
from spectrim.runtime.context import RunContext


def budget_for_latency(
    name: str, latency: float, tokens: int = 1, context: RunContext | None = None
) -> float:
    """Return the largest budget whose layers take at most `latency` of the dense time here.

    Args:
        name: an elastic checkpoint.
        latency: fraction of the time of the dense layers, fused, for `tokens` at once.

    Raises:
        InputError: the checkpoint is not elastic, or no size is fast enough.
    """
    if not 0 < latency <= 1:
        raise InputError(f"latency {latency:g}: expected a fraction of the dense time, 0 to 1")
    sizes = elastic_sizes(name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = TimingSpec(device, stored_dtype(name) or torch.float32, tokens)
    shapes = [layer.shape for layer in sizes.layers.values()]
    times = time_shapes(shapes, sizes.kind, place, context or RunContext())
    return sizes.budget_for_time(times, latency)
