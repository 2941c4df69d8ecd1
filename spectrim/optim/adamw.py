"""`W <- (1 - lr wd) W - lr m_hat / (sqrt(v_hat) + eps)`: torch's AdamW, for all parameters.

The default of every training here, and what the others are compared with: two moments per
parameter, 8 bytes, and a step of about the same size along every coordinate.
"""

from __future__ import annotations

from typing import Any

from torch.optim import AdamW

REFERENCE = "Loshchilov and Hutter, 2019, arXiv:1711.05101"
OPTIMIZER = AdamW
REDUCES_TO: tuple[str, dict[str, Any]] = ("AdamW", {})


def state_bytes(rows: int, columns: int) -> int:
    """Return the bytes of both moments and the count of steps."""
    return 8 * rows * columns + 4
