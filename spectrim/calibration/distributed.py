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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spectrim.calibration.in_memory import (
    CalibrationSettings,
    Rows,
    any_batches,
    begin,
    calibrate,
    rows_per_batch,
    run_batch,
)
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.copying import deep_copy
from spectrim.models.hooks import frozen_eval
from spectrim.models.linear import as_stored
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
    with raise_unless_sharded(model):
        part = start_shard(model, targets, blocks, own)
        missing = missing_passes(model, blocks, own, part)
        part = calibrate(model, targets, blocks, own, resume=part)
    run_idle_passes(model, targets, blocks, own, missing)
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
    mesh = dist.init_device_mesh(_device(model), (dist.get_world_size(),))
    model.requires_grad_(False)  # so that no gradient of a weight is ever formed or scattered
    for _, block in decoder_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def sharded_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` for `shard_model`, whose own tensors stay where they are.

    Raises InputError where there is no process group.
    """
    memo: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
    }
    memo |= {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    return shard_model(deep_copy(model, memo))


@torch.no_grad()
def set_sharded_layer(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a linear layer of a sharded model another weight (out, in) and bias (out,).

    Every process writes its own share; nothing is exchanged.
    """
    _write_shard(module.weight, as_stored(module, weight))
    if bias is None:
        return
    if module.bias is None:
        module.bias = nn.Parameter(bias.to(_device(module)), requires_grad=False)
    else:
        _write_shard(module.bias, bias)


def raise_unless_sharded(model: nn.Module) -> AbstractContextManager[None]:
    """Enter `raise_together` around passes; those of a sharded model exchange weights, so that
    an error is raised in one process alone, which has to end."""
    return nullcontext() if is_sharded(model) else distributed.raise_together()


def missing_passes(
    model: nn.Module, blocks: Rows, settings: CalibrationSettings, part: Calibration
) -> int:
    """Return how many passes fewer than another process this one has ahead; 0 unless sharded.

    All processes of a sharded model have to ask before their passes.
    """
    if not is_sharded(model):
        return 0
    left = len(blocks) - int(part.provenance["sequences_done"])
    step = rows_per_batch(blocks, settings.tokens_per_batch) * settings.every
    passes = max(0, -(-left // step))
    return max(distributed.all_gather(passes)) - passes


def run_idle_passes(
    model: nn.Module,
    targets: Sequence[Target],
    blocks: Rows,
    settings: CalibrationSettings,
    passes: int,
) -> None:
    """Run passes that contribute nothing, while other processes have batches left."""
    device = next(model.parameters()).device
    batch = next(iter(any_batches(blocks, blocks.length, 0, device)))
    with frozen_eval(model):
        for _ in range(passes):
            run_batch(model, targets, batch, settings, lambda *_: None)


def is_sharded(model: nn.Module) -> bool:
    """Return whether the processes hold shares of the model's weights."""
    if distributed.num_processes() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _write_shard(parameter: object, values: Tensor) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    values = values.to(parameter.device, parameter.dtype)
    mesh, placements = parameter.device_mesh, parameter.placements
    own = distribute_tensor(values, mesh, placements, src_data_rank=None)
    parameter.to_local().copy_(own.to_local())


def _device(model: nn.Module) -> str:
    return next(model.parameters()).device.type
