"""Kernels run compiled where there is a GPU, and interpreted step by step elsewhere."""

from __future__ import annotations

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _triton():
    pytest.importorskip("triton", reason="kernels need `pip install triton`")
