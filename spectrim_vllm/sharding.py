"""Compute the outputs and inputs of a layer that one process of a group holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def whole_sizes(layer: nn.Module, local: Sequence[int], output_size: int) -> list[int]:
    """Return the number of outputs in the checkpoint of each part of vLLM's linear `layer`.

    Key and value heads that vLLM repeats to fill its group count once.

    Args:
        local: The number of outputs of each part that is held here.
    """
    sizes = [int(size) for size in getattr(layer, "output_sizes", [output_size])]
    if len(sizes) != len(local):
        raise ValueError(f"{type(layer).__name__} has {len(sizes)} parts, {len(local)} held")
    return [size // count for size, count in zip(sizes, _repeats(layer, sizes), strict=True)]


def local_rows(layer: nn.Module, local: Sequence[int], whole: Sequence[int]) -> list[Tensor]:
    """Return for each part the indices, in the checkpoint, of the outputs held here."""
    rows = []
    for size, total, count in zip(local, whole, _repeats(layer, whole), strict=True):
        start = 0 if size == total else _rank(layer) // count * size
        if start + size > total:
            raise ValueError(
                f"{getattr(layer, 'prefix', 'a layer')} has outputs {start} to {start + size} "
                f"of {total} here; vLLM pads it, which factors cannot follow"
            )
        rows.append(torch.arange(start, start + size))
    return rows


def local_columns(layer: nn.Module, local: int, whole: int) -> slice:
    """Return the range of the inputs held here."""
    start = 0 if local == whole else _rank(layer) * local
    return slice(start, start + local)


def joined_rows(rows: Sequence[Tensor], whole: Sequence[int]) -> Tensor:
    """Return the rows of all parts as rows of the one projection that the checkpoint holds."""
    offset, joined = 0, []
    for part, size in zip(rows, whole, strict=True):
        joined.append(part + offset)
        offset += size
    return torch.cat(joined)


def _repeats(layer: nn.Module, parts: Sequence[object]) -> list[int]:
    """Return the number of processes that hold the same outputs of each part (key, value)."""
    count = int(getattr(layer, "num_kv_head_replicas", 1))
    return [1, *[count] * (len(parts) - 1)]


def _rank(layer: nn.Module) -> int:
    return int(getattr(layer, "tp_rank", 0))
