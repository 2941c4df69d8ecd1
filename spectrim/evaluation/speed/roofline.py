"""The limits of the device: bytes read and multiply-adds per second, both measured.

bandwidth   y = W x with W larger than the caches: every byte of W is read once
arithmetic  C = A B with square matrices: 2 n^3 operations on 3 n^2 numbers
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spectrim.evaluation.speed.timing import synchronize, time_once

READ_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}
PRODUCT_WIDTH = {"cpu": 1024, "cuda": 8192}
REPETITIONS = 7


@dataclass(frozen=True)
class Limits:
    """bytes_per_second and operations_per_second (a multiply-add is two)."""

    bytes_per_second: float
    operations_per_second: float


@torch.inference_mode()
def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Return the best of a few repetitions; other processes can only slow them down."""
    width = 8192
    rows = READ_BYTES.get(device.type, READ_BYTES["cpu"]) // (width * dtype.itemsize)
    weight = torch.zeros(rows, width, dtype=dtype, device=device)
    vector = torch.ones(width, dtype=dtype, device=device)
    read = _best(lambda: torch.mv(weight, vector), device)
    size = PRODUCT_WIDTH.get(device.type, PRODUCT_WIDTH["cpu"])
    square = torch.ones(size, size, dtype=dtype, device=device)
    product = _best(lambda: square @ square, device)
    return Limits(rows * width * dtype.itemsize / read, 2 * size**3 / product)


def _best(run: object, device: torch.device) -> float:
    assert callable(run)
    synchronize(device, run)
    return min(time_once(run, device) for _ in range(REPETITIONS))
