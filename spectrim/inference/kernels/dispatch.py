"""Decide whether a kernel can run: Triton is installed and can reach the tensors."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

from torch import Tensor


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """Return whether TRITON_INTERPRET=1 runs kernels step by step on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_kernel(tensor: Tensor) -> bool:
    return has_triton() and (tensor.is_cuda or interprets())
