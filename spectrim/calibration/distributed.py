"""Calibration by several processes: each sums over a part of the batches, then all add up.

    S = sum_ranks S_r        every statistic is a sum over tokens

Process r of n runs the batches r, r + n, r + 2n, ... Sequences keep their own numbers, so that
labels drawn by sequence, and gradients kept in buckets of sequences, are those of one process.

A model may be sharded over the processes (FSDP2): layers then still see whole inputs, outputs
and gradients, and only their weights come and go. Its processes have to run as many passes as
each other, so one that has no batch left keeps the others company.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn

from spectrim.calibration.in_memory import (
    CalibrationSettings,
    Rows,
    begin,
    calibrate,
    frozen_eval_with_graph,
    rows_per_batch,
)
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.targets import Target
from spectrim.models.targets import decoder_blocks as decoder_blocks
from spectrim.runtime import distributed
from spectrim.statistics import Calibration


def calibrate_distributed(
    model: nn.Module,
    targets: Sequence[Target],
    blocks: TokenBlocks,
    settings: CalibrationSettings,
) -> Calibration:
    """Return in every process of the default group what `calibrate` returns, to rounding.

    Each process holds the whole model, or its shard of one that `shard_model` has split, and
    calls this with the same arguments. Raises InputError where there is no group; what
    `calibrate` raises in one process is raised in all, unless the model is sharded: then that
    process alone raises it, and has to end.
    """
    if not dist.is_initialized():
        raise InputError("no process group; start with torchrun and init_process_group")
    own = shard_settings(blocks, settings)
    in_shards = _in_shards(model)
    with nullcontext() if in_shards else distributed.raise_together():
        part = start_shard(model, targets, blocks, own)
        missing = _rounds(blocks, own) - _passes(part, blocks, own)
        part = calibrate(model, targets, blocks, own, resume=part)
        if in_shards:
            _run_idle_passes(model, blocks, own, missing)
    return all_reduce(part, len(blocks))


def shard_settings(blocks: Rows, settings: CalibrationSettings) -> CalibrationSettings:
    """Return the settings of one of several processes; in a single process unchanged.

    All processes get the same number of batches, or one more.
    """
    if (count := distributed.num_processes()) == 1:
        return settings
    rows = rows_per_batch(blocks, settings.tokens_per_batch)
    rounds = -(-len(blocks) // (rows * count))
    rows = -(-len(blocks) // (rounds * count))
    return replace(settings, tokens_per_batch=rows * blocks.length, every=count)


def start_shard(
    model: nn.Module,
    targets: Sequence[Target],
    blocks: Rows,
    settings: CalibrationSettings,
) -> Calibration:
    """Run `begin` at this process's first batch."""
    part = begin(model, targets, blocks, settings)
    first = distributed.process_index() * rows_per_batch(blocks, settings.tokens_per_batch)
    part.provenance["sequences_done"] = min(first, len(blocks))
    return part


def all_reduce(part: Calibration, sequences: int) -> Calibration:
    """Sum a calibration over the processes in place, to the same bits in each of them."""
    if distributed.num_processes() == 1:
        return part
    states = [state for by_layer in part.states.values() for state in by_layer.values()]
    distributed.all_reduce_sum_(tensor for state in states for tensor in state.values())
    numbers = torch.tensor([part.tokens, *part.counts.values()], dtype=torch.float64)
    distributed.all_reduce_sum_([numbers])
    whole = [int(value) if value.is_integer() else value for value in numbers.tolist()]
    part.tokens = whole[0]
    part.counts = dict(zip(part.counts, whole[1:], strict=True))
    part.provenance["sequences_done"] = sequences
    return part


def shard_model(model: nn.Module) -> nn.Module:
    """Shard `model` in place (FSDP2), with frozen parameters.

    Each process keeps its share of the weights; a decoder block's are gathered for its own
    passes and freed after them.

    Raises InputError where there is no process group.
    """
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        raise InputError("no process group; start with torchrun and init_process_group")
    mesh = dist.init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    model.requires_grad_(False)  # so that no gradient of a weight is ever formed or scattered
    for _, block in decoder_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _in_shards(model: nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _rounds(blocks: TokenBlocks, settings: CalibrationSettings) -> int:
    step = rows_per_batch(blocks, settings.tokens_per_batch) * settings.every
    return -(-len(blocks) // step)


def _passes(part: Calibration, blocks: TokenBlocks, settings: CalibrationSettings) -> int:
    left = len(blocks) - int(part.provenance["sequences_done"])
    step = rows_per_batch(blocks, settings.tokens_per_batch) * settings.every
    return max(0, -(-left // step))


def _run_idle_passes(
    model: nn.Module, blocks: TokenBlocks, settings: CalibrationSettings, passes: int
) -> None:
    """Run passes that contribute nothing, while other processes have batches left."""
    ids = blocks.ids[:1].to(next(model.parameters()).device)
    for _ in range(passes):
        with (
            frozen_eval_with_graph(model, settings.backward),
            torch.set_grad_enabled(settings.backward),
        ):
            logits = model(input_ids=ids, use_cache=False).logits
            if settings.backward:
                logits.sum().backward()
