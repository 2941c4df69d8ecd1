"""`torchrun -m spectrim ...`: the process group, which process prints, the one error line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from spectrim.errors import InputError
from spectrim.runtime import distributed

SHARING = ("bench", "compress", "evaluate", "plan")
"""The commands that several processes share."""
_FAILED = "spectrim/failed"
_WAIT = timedelta(days=7)
"""Longer than any step that one process does alone: a process that ends is noticed at once."""


def launched_by_torchrun() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ


@contextmanager
def group() -> Iterator[None]:
    """Join the process group of torchrun's environment, if any, until the context ends.

    Gloo on CPUs, and NCCL for tensors on GPUs. Only the first process prints.
    """
    if not launched_by_torchrun():
        yield
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=_WAIT))
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_WAIT)
    if rank > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        yield
    except SystemExit as end:
        if not end.code:
            dist.destroy_process_group()
        raise


def check_shared(command: str | None) -> None:
    """Raise InputError for a command that runs in one process only."""
    if distributed.num_processes() > 1 and command not in SHARING:
        raise InputError(
            f"`spectrim {command}` runs in one process: start it without torchrun "
            f"(several share {', '.join(SHARING)})"
        )


def is_first_failure() -> bool:
    """Return True in the first process that fails; the others end silently."""
    if not (dist.is_available() and dist.is_initialized()):
        return True
    try:
        return _store().add(_FAILED, 1) == 1
    except (RuntimeError, OSError):
        return False


def is_lost(error: BaseException) -> bool:
    """Return whether an error comes from an exchange with a process that has ended."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    names = ("gloo", "nccl", "connection", "socket", "broken pipe")
    lost = isinstance(error, dist.DistError)
    return lost or any(name in str(error).lower() for name in names)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
