"""One job in several processes: sharing the work, gathering results, raising errors in all.

Every process runs the same program on the same values and does its own part of the long
steps. Without a default group of `torch.distributed` there is one process, and nothing here
has an effect. All processes have to call the functions that exchange something, in the same
order.
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
K = TypeVar("K")
_ALONE = ContextVar("alone", default=False)
_SMALL = 2**17
"""Numbers; smaller tensors are reduced together, since each reduction costs a round trip."""


def num_processes() -> int:
    grouped = dist.is_available() and dist.is_initialized() and not _ALONE.get()
    return dist.get_world_size() if grouped else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


def is_main_process() -> bool:
    """Return whether this process writes what all processes have, and prints."""
    return process_index() == 0


def shard(items: Iterable[T]) -> Iterator[T]:
    """Return every `num_processes()`-th item, beginning with this process's index."""
    return islice(items, process_index(), None, num_processes())


def own_rows(rows: Tensor) -> Tensor:
    """Return every `num_processes()`-th row, beginning with this process's index."""
    return rows[process_index() :: num_processes()]


def map_items(
    function: Callable[[K], T],
    items: Iterable[K],
    track: Callable[[list[K]], Iterable[K]] = iter,
) -> dict[K, T]:
    """Return `function` of every item, computed in shares; an error is raised in all.

    track: shows progress over the items of this process. The function must not exchange
    anything, and its values have to be small.
    """
    own = {}
    with raise_together():
        for item in track(list(shard(items))):
            own[item] = function(item)
    return gather_dict(own)


def own_items(items: Sequence[T], costs: Sequence[float]) -> list[T]:
    """Return this process's share of the items, about as much work as that of others."""
    owners = balanced_bins(costs, num_processes())
    own = process_index()
    return [item for item, owner in zip(items, owners, strict=True) if owner == own]


def balanced_bins(costs: Sequence[float], bins: int) -> list[int]:
    """Return a bin for each cost: the largest first, each into the bin that holds least."""
    filled = [0.0] * bins
    owners = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[item] = min(range(bins), key=filled.__getitem__)
        filled[owners[item]] += costs[item]
    return owners


def all_gather(value: T) -> list[T]:
    """Return the value of every process, in order; for small values that can be pickled."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def gather_dict(mine: Mapping[K, T]) -> dict[K, T]:
    """Return the union of all processes' mappings, whose keys differ."""
    return {key: value for part in all_gather(mine) for key, value in part.items()}


def all_true(condition: bool) -> bool:
    """Return whether the condition holds in every process."""
    return all(all_gather(condition))


def all_reduce_sum_(tensors: Iterable[Tensor]) -> None:
    """Sum tensors over the processes in place, to the same bits in each of them."""
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
    """Return the tensors of all processes, whose names differ, on the CPU and contiguous."""
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
    """Raise an error of one process in all of them at the end of the block.

    Warnings are given in all of them too. The block must not exchange anything.
    """
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
    """Return in all processes the small value that `make` returns in the main process.

    Inside `make` the main process is the only one. Its errors are raised in all.
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
