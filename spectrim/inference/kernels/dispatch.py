"""Whether a kernel can run: Triton is there, and the tensors are where it can reach them."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

from torch import Tensor


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """TRITON_INTERPRET=1: kernels are run step by step on the processor."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_kernel(tensor: Tensor) -> bool:
    return has_triton() and (tensor.is_cuda or interprets())
