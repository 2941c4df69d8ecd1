"""Copies of the test's process in one gloo group, and what each of them found."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_processes(place: Path, work: Callable[[], Any], count: int = 2) -> list[Any]:
    """`work()` of every process, in their order; they meet at a file in `place`."""
    place.mkdir(exist_ok=True)
    children = [_forked(place, work, rank, count) for rank in range(count)]
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert codes == [0] * count, (place / "trace").read_text()
    return [pickle.loads((place / str(rank)).read_bytes()) for rank in range(count)]


def _forked(place: Path, work: Callable[[], Any], rank: int, count: int) -> int:
    if (child := os.fork()) != 0:
        return child
    code = 1
    try:
        meeting = f"file://{place / 'meeting'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
        (place / str(rank)).write_bytes(pickle.dumps(work()))
        dist.barrier()
        code = 0
    except BaseException:
        (place / "trace").write_text(traceback.format_exc())
    finally:
        os._exit(code)
