"""Calibration by several processes: each sums over a part of the sequences, then all add up.

    S = sum_ranks S_r        every statistic is a sum over tokens

The parts are ranges of whole sequences under their own numbers, so that labels drawn by
sequence, and gradients kept in buckets of sequences, are those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn

from spectrim.calibration.result import Calibration
from spectrim.calibration.whole_model import CalibrationSettings, begin, calibrate
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.surgery.targets import Target


def calibrate_distributed(
    model: nn.Module,
    targets: Sequence[Target],
    blocks: TokenBlocks,
    settings: CalibrationSettings,
) -> Calibration:
    """What `calibrate` gives, to rounding, in every process of the default group.

    Each process holds the whole model and calls this with the same arguments. Raises
    InputError where there is no group, or fewer sequences than processes.
    """
    if not dist.is_initialized():
        raise InputError("no process group; start with torchrun and init_process_group")
    rank, count = dist.get_rank(), dist.get_world_size()
    if len(blocks) < count:
        raise InputError(f"{count} processes share {len(blocks)} sequences; start fewer")
    start, end = (len(blocks) * (rank + more) // count for more in (0, 1))
    part = begin(model, targets, blocks, settings)
    part.provenance["sequences_done"] = start
    result = calibrate(model, targets, _first(blocks, end), settings, resume=part)
    _add_up(result)
    result.provenance["sequences_done"] = len(blocks)
    return result


def _first(blocks: TokenBlocks, end: int) -> TokenBlocks:
    mask, scored = (None if t is None else t[:end] for t in (blocks.mask, blocks.scored))
    return replace(blocks, ids=blocks.ids[:end], mask=mask, scored=scored)


def _add_up(result: Calibration) -> None:
    """All sums, in place and in the same order in every process."""
    for by_layer in result.states.values():
        for state in by_layer.values():
            for tensor in state.values():
                dist.all_reduce(tensor)
    numbers = torch.tensor([result.tokens, *result.counts.values()], dtype=torch.int64)
    dist.all_reduce(numbers)
    result.tokens = int(numbers[0])
    result.counts = dict(zip(result.counts, numbers[1:].tolist(), strict=True))
