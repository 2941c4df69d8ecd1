"""Orders in which a recurrence reads an image or a sequence."""

from __future__ import annotations

import torch
from torch import Tensor


def scan(x: Tensor, scans: int) -> Tensor:
    """Return sequences (B, K, L, d): forward, and of images also by columns and backward."""
    if scans == 1:
        return x[:, None]
    rows, columns = x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)
    return torch.stack([rows, columns, rows.flip(1), columns.flip(1)], 1)


def unscan(sequences: Tensor, like: Tensor) -> Tensor:
    """Return the sum over scans, every position where it stands in `like`."""
    if sequences.shape[1] == 1:
        return sequences[:, 0]
    batch, height, width, _ = like.shape
    rows, columns, rows_back, columns_back = sequences.unbind(1)
    by_rows = (rows + rows_back.flip(1)).view(batch, height, width, -1)
    by_columns = (columns + columns_back.flip(1)).view(batch, width, height, -1)
    return by_rows + by_columns.transpose(1, 2)
