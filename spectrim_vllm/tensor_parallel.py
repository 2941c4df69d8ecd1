"""The part of one projection that a process of a tensor-parallel group multiplies with.

    z = first x,    y = z                      dense
                    y = second z               plain factors
                    y = [z, second z][position]    pivoted
                    y = second z + S x         plain factors and sparse entries S

`first` (k, in) takes the process's columns of the input, `second` and `position` give its rows
of the output. A pivoted layer's other rows need every pivot, so `first` holds them all on each
process of a column-parallel layer, as plain factors hold all of `right`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spectrim_vllm.config_entries import Entry

Tensors = Mapping[str, Tensor]
"""A projection's tensors by their names in the checkpoint."""


@dataclass(frozen=True)
class LocalFactors:
    first: Tensor
    second: Tensor | None = None
    position: Tensor | None = None
    bias: Tensor | None = None
    values: Tensor | None = None
    columns: Tensor | None = None


@dataclass(frozen=True)
class LocalSlice:
    """The part of a projection of shape (out, in) held here: output rows, input columns."""

    shape: tuple[int, int]
    rows: Tensor
    columns: slice

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return the part of a checkpoint's tensor that is needed here, judged by its name."""
        if name in _WIDE:
            tensor = tensor[:, self.columns]
        if name in _TALL and len(self.rows) < self.shape[0]:
            tensor = tensor[self.rows]
        return tensor.contiguous()


_WIDE = {"weight", "right.weight", "pivots.weight", "dictionary.weight"}
_TALL = {"weight", "left.weight", "left.bias"}
_DENSITY = 0.03
"""Share of the inputs that every row of S has an entry for."""


def multiply(z: Tensor, second: Tensor | None, position: Tensor | None) -> Tensor:
    """Return the outputs for `z = first x`, without the bias."""
    if second is None:
        return z
    other = nn.functional.linear(z, second)
    if position is None:
        return other
    return torch.cat([z, other], dim=-1).index_select(-1, position)


def sparse_product(x: Tensor, values: Tensor, columns: Tensor) -> Tensor:
    """Return `S x` of the values (out, s) of S and their columns; S is expanded for it."""
    empty = values.new_zeros(len(values), x.shape[-1])
    return nn.functional.linear(x, empty.scatter_add(1, columns.long(), values))


def expected_shapes(entry: Entry | None, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a projection's tensors in the checkpoint by name, with its biases.

    Args:
        entry: None for a dense projection.
    """
    out, width = shape
    if entry is None:
        return {"weight": (out, width)}
    rank = entry.rank
    if entry.stored is not None:
        return entry.stored.shapes(shape)
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
    if entry.kind == "sparse_plus_lowrank":
        places = out, max(1, round(_DENSITY * width))
        return {"right.weight": (rank, width), **left, "values": places, "columns": places}
    return left if entry.basis else {"right.weight": (rank, width), **left}


def local_factors(entry: Entry | None, tensors: Tensors, local: LocalSlice) -> LocalFactors:
    """Return this process's factors from the tensors of a projection, each cut by `local`.

    Of a layer on another layer's basis, `tensors` holds that basis as its `right.weight`.
    """
    kind = "dense" if entry is None or entry.rank == 0 else entry.kind
    return _BUILDERS[kind](tensors, local)


def _dense(tensors: Tensors, local: LocalSlice) -> LocalFactors:
    return LocalFactors(tensors["weight"])


def _plain(tensors: Tensors, local: LocalSlice) -> LocalFactors:
    return LocalFactors(
        tensors["right.weight"], tensors["left.weight"], bias=tensors.get("left.bias")
    )


def _pivoted(tensors: Tensors, local: LocalSlice) -> LocalFactors:
    """Return the factors of a pivoted layer; coefficients are in the order of other rows."""
    first, coefficients = tensors["pivots.weight"], tensors["coefficients.weight"]
    is_pivot = unpack_bits(tensors["pivot_mask"], local.shape[0])
    place = torch.where(is_pivot, is_pivot.cumsum(0) - 1, (~is_pivot).cumsum(0) - 1)
    pivots, place = is_pivot[local.rows], place[local.rows]
    position = torch.where(pivots, place, len(first) + (~pivots).cumsum(0) - 1)
    bias = None
    if "pivots.bias" in tensors:
        pivot_bias = tensors["pivots.bias"].double()
        other_bias = coefficients.double() @ pivot_bias + tensors["coefficients.bias"].double()
        bias = torch.empty(len(place), dtype=torch.float64)
        bias[pivots] = pivot_bias[place[pivots]]
        bias[~pivots] = other_bias[place[~pivots]]
    return LocalFactors(first, coefficients[place[~pivots]], position, bias)


def _sparse(tensors: Tensors, local: LocalSlice) -> LocalFactors:
    dictionary, values = tensors["dictionary.weight"], tensors["values"]
    out, rank = local.shape[0], len(dictionary)
    marked = unpack_bits(tensors["mask"], out * rank).view(out, rank)
    coefficients = torch.zeros(out, rank, dtype=values.dtype).masked_scatter(marked, values)
    return LocalFactors(dictionary, coefficients[local.rows])


def _sparse_plus(tensors: Tensors, local: LocalSlice) -> LocalFactors:
    """Return plain factors and the entries of S in the columns held here, zeros for others."""
    columns = tensors["columns"][local.rows].long() - local.columns.start
    width = local.columns.stop - local.columns.start
    held = (columns >= 0) & (columns < width)
    values = tensors["values"][local.rows]
    plain = _plain(tensors, local)
    return replace(
        plain,
        values=torch.where(held, values, torch.zeros_like(values)),
        columns=torch.where(held, columns, 0).to(tensors["columns"].dtype),
    )


_BUILDERS: dict[str, Callable[[Tensors, LocalSlice], LocalFactors]] = {
    "dense": _dense,
    "lowrank": _plain,
    "shared_basis": _plain,
    "pivoted": _pivoted,
    "sparse_dictionary": _sparse,
    "sparse_plus_lowrank": _sparse_plus,
}


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """Return the first `count` booleans of bytes that hold eight each, lowest bit first."""
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed[:, None] >> shifts) & 1).bool().flatten()[:count]


def _bytes(bits: int) -> int:
    return (bits + 7) // 8
