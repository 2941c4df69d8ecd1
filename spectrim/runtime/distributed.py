"""Several processes at one job: who does what, how results come together, how errors end all.

Every process runs the same program on the same values and does its own part of the long steps.
It is one of `num_processes()` in the default group of `torch.distributed`; without a group it
is the only one, and everything here leaves it alone. All processes have to call the functions
that exchange something, in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from spectrim.errors import SpectrimError

T = TypeVar("T")
_ALONE = ContextVar("alone", default=False)
_SMALL = 2**17
"""Numbers; tensors below it are added up together, since each sum costs a round trip."""


def num_processes() -> int:
    grouped = dist.is_available() and dist.is_initialized() and not _ALONE.get()
    return dist.get_world_size() if grouped else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


def is_main_process() -> bool:
    """The process that writes what all of them have, and prints."""
    return process_index() == 0


def shard(items: Iterable[T]) -> Iterator[T]:
    """Every `num_processes()`-th, beginning with this process's number."""
    return islice(items, process_index(), None, num_processes())


def balanced_bins(costs: Sequence[float], bins: int) -> list[int]:
    """For each cost its bin: the largest first, each into the bin that holds least."""
    filled = [0.0] * bins
    owners = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[item] = min(range(bins), key=filled.__getitem__)
        filled[owners[item]] += costs[item]
    return owners


def all_gather(value: T) -> list[T]:
    """Every process's value, in their order; small ones that can be pickled."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def gather_dict(mine: Mapping[str, T]) -> dict[str, T]:
    """The entries of every process's mapping, whose keys differ."""
    return {key: value for part in all_gather(mine) for key, value in part.items()}


def all_true(condition: bool) -> bool:
    """True where it holds in every process."""
    return all(all_gather(condition))


def all_reduce_sum_(tensors: Iterable[Tensor]) -> None:
    """Sums over the processes, in place; the same bits in each of them."""
    if num_processes() == 1:
        return
    small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() < _SMALL or not tensor.is_contiguous():
            small.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        else:
            dist.all_reduce(tensor)
    for alike in small.values():
        joint = torch.cat([tensor.flatten() for tensor in alike])
        dist.all_reduce(joint)
        parts = joint.split([tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def gather_tensors(mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of every process, whose names differ, on the CPU and contiguous."""
    if num_processes() == 1:
        return dict(mine)
    headers = all_gather({name: (tensor.shape, tensor.dtype) for name, tensor in mine.items()})
    result: dict[str, Tensor] = {}
    for source, header in enumerate(headers):
        for name, (shape, dtype) in header.items():
            given = mine[name].contiguous() if source == process_index() else None
            result[name] = torch.empty(shape, dtype=dtype) if given is None else given
            dist.broadcast(result[name], source)
    return result


@contextmanager
def raise_together() -> Iterator[None]:
    """Work without exchanges, each process its own: an error of ours in one of them is raised
    in all at the end of the block, and so are the warnings given."""
    if num_processes() == 1:
        yield
        return
    error: SpectrimError | None = None
    with warnings.catch_warnings(record=True) as given:
        try:
            yield
        except SpectrimError as caught:
            error = caught
    told = [(str(each.message), each.category) for each in given]
    outcomes = all_gather((None if error is None else (type(error), str(error)), told))
    for text, category in dict.fromkeys(each for _, texts in outcomes for each in texts):
        warnings.warn(text, category, stacklevel=3)
    for failed, _ in outcomes:
        if failed is not None:
            raise _again(*failed) from error


def _again(kind: type[SpectrimError], text: str) -> SpectrimError:
    error = kind.__new__(kind)
    error.args = (text,)
    return error


def run_on_main(make: Callable[[], T]) -> T:
    """What `make` returns, a small value, in the first process; the others wait for it.

    Inside, the first is on its own. Its errors are raised in all.
    """
    if num_processes() == 1:
        return make()
    made: list[Any] = [None]
    with raise_together():
        if is_main_process():
            token = _ALONE.set(True)
            try:
                made = [make()]
            finally:
                _ALONE.reset(token)
    dist.broadcast_object_list(made, 0)
    return made[0]
