"""One projection as vLLM multiplies with it, on one process of a tensor-parallel group.

    z = first x,    y = z                      dense
                    y = second z               plain factors
                    y = [z, second z][position]    pivoted

`first` (k, in) takes the process's columns of the input, `second` and `position` give its rows
of the output. A pivoted layer's other rows need every pivot, so `first` holds them all on each
process of a column-parallel layer, as plain factors hold all of `right`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim_vllm.entries import Entry

Tensors = Mapping[str, Tensor]
"""A projection's tensors by their names in the checkpoint."""


@dataclass(frozen=True)
class Piece:
    first: Tensor
    second: Tensor | None = None
    position: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Share:
    """This process's part of a projection of shape (out, in): output rows, input columns."""

    shape: tuple[int, int]
    rows: Tensor
    columns: slice

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """What of a checkpoint's tensor is needed here, as far as its name alone tells."""
        if name in _WIDE:
            tensor = tensor[:, self.columns]
        if name in _TALL and len(self.rows) < self.shape[0]:
            tensor = tensor[self.rows]
        return tensor.contiguous()


_WIDE = {"weight", "right.weight", "pivots.weight", "dictionary.weight"}
_TALL = {"weight", "left.weight", "left.bias"}


def multiply(z: Tensor, second: Tensor | None, position: Tensor | None) -> Tensor:
    """The outputs for `z = first x`, without the bias."""
    if second is None:
        return z
    other = nn.functional.linear(z, second)
    if position is None:
        return other
    return torch.cat([z, other], dim=-1).index_select(-1, position)


def expected_shapes(entry: Entry | None, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a projection's tensors in the checkpoint, its biases among them;
    entry None for a dense one."""
    out, width = shape
    if entry is None:
        return {"weight": (out, width)}
    rank = entry.rank
    if entry.kind == "pivoted":
        return {
            "pivots.weight": (rank, width),
            "pivots.bias": (rank,),
            "coefficients.weight": (out - rank, rank),
            "coefficients.bias": (out - rank,),
            "pivot_mask": (_bytes(out),),
        }
    if entry.kind == "sparse_dictionary":
        return {
            "dictionary.weight": (rank, width),
            "values": (out, (rank + 1) // 2),
            "mask": (_bytes(out * rank),),
        }
    left = {"left.weight": (out, rank), "left.bias": (out,)}
    return left if entry.basis else {"right.weight": (rank, width), **left}


def piece(entry: Entry | None, tensors: Tensors, share: Share) -> Piece:
    """The process's share of a projection from all its tensors, each cut by `share`; a layer
    on another's basis finds that among them as its own `right.weight`."""
    kind = "dense" if entry is None else entry.kind
    return _BUILDERS[kind](tensors, share)


def _dense(tensors: Tensors, share: Share) -> Piece:
    return Piece(tensors["weight"])


def _plain(tensors: Tensors, share: Share) -> Piece:
    return Piece(tensors["right.weight"], tensors["left.weight"], bias=tensors.get("left.bias"))


def _pivoted(tensors: Tensors, share: Share) -> Piece:
    """The rows that are no pivots are counted in the order of the coefficients."""
    first, coefficients = tensors["pivots.weight"], tensors["coefficients.weight"]
    is_pivot = unpack_bits(tensors["pivot_mask"], share.shape[0])
    place = torch.where(is_pivot, is_pivot.cumsum(0) - 1, (~is_pivot).cumsum(0) - 1)
    local, place = is_pivot[share.rows], place[share.rows]
    position = torch.where(local, place, len(first) + (~local).cumsum(0) - 1)
    bias = None
    if "pivots.bias" in tensors:
        pivot_bias = tensors["pivots.bias"].double()
        other_bias = coefficients.double() @ pivot_bias + tensors["coefficients.bias"].double()
        bias = torch.empty(len(place), dtype=torch.float64)
        bias[local] = pivot_bias[place[local]]
        bias[~local] = other_bias[place[~local]]
    return Piece(first, coefficients[place[~local]], position, bias)


def _sparse(tensors: Tensors, share: Share) -> Piece:
    dictionary, values = tensors["dictionary.weight"], tensors["values"]
    out, rank = share.shape[0], len(dictionary)
    marked = unpack_bits(tensors["mask"], out * rank).view(out, rank)
    coefficients = torch.zeros(out, rank, dtype=values.dtype).masked_scatter(marked, values)
    return Piece(dictionary, coefficients[share.rows])


_BUILDERS: dict[str, Callable[[Tensors, Share], Piece]] = {
    "dense": _dense,
    "lowrank": _plain,
    "shared_basis": _plain,
    "pivoted": _pivoted,
    "sparse_dictionary": _sparse,
}


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The first `count` booleans of bytes that hold eight each, lowest bit first."""
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed[:, None] >> shifts) & 1).bool().flatten()[:count]


def _bytes(bits: int) -> int:
    return (bits + 7) // 8
