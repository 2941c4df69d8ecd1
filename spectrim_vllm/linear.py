"""A linear layer of vLLM whose projections are factored, each with its own rank.

All `first` factors of a fused layer stand in one matrix, so that what depends on the input is
one product; dense projections stand there whole, and their rows of it are their outputs:

    z = [right_q; right_k; W_v] x,    y = [left_q z_q, left_k z_k, z_v]

In a tensor-parallel group `left` is cut where vLLM cuts outputs, `right` where it cuts inputs
(`pieces`). Row-parallel layers end in vLLM's own sum over the group, which holds for partial
outputs because every form here is linear in z.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase

from spectrim_vllm.empty import add_empty, remove_empty
from spectrim_vllm.entries import projections
from spectrim_vllm.pieces import Piece, Share, multiply
from spectrim_vllm.projection import Projection
from spectrim_vllm.sharding import joined_rows, local_columns, local_rows, whole_sizes

if TYPE_CHECKING:
    from spectrim_vllm.config import SpectrimConfig

_QKV = {"q": 0, "k": 1, "v": 2}


class FactoredLinearMethod(LinearMethodBase):
    """One for each layer: `projections` gather its tensors, `ranges` are the places of each
    projection's z in the stacked product."""

    def __init__(self, config: SpectrimConfig, prefix: str):
        self.config = config
        self.prefix = prefix
        self.projections: list[Projection] = []
        self.ranges: list[tuple[int, int]] = []

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Empty parameters under the checkpoint's names, whose loaders gather the tensors."""
        names = projections(
            self.prefix, self.config.packed_modules_mapping, len(output_partition_sizes)
        )
        whole = whole_sizes(layer, output_partition_sizes, output_size)
        rows = local_rows(layer, output_partition_sizes, whole)
        if len(names) == 1:
            whole, rows = [sum(whole)], [joined_rows(rows, whole)]
        columns = local_columns(layer, input_size_per_partition, input_size)
        for name, out, local in zip(names, whole, rows, strict=True):
            share = Share((out, input_size), local, columns)
            self.projections.append(Projection(name, self.config.entries.get(name), share))
        self.dtype = params_dtype
        add_empty(layer, self._tensor_names(), self._loader)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Replace the empty parameters by what is multiplied with. Raises ValueError where
        tensors did not come."""
        device = remove_empty(layer, self._tensor_names())
        pieces = self._pieces(layer.bias is not None)
        stacked = {id(piece.first): piece.first.to(device, self.dtype) for piece in pieces}
        ends = list(accumulate(len(first) for first in stacked.values()))
        places = dict(zip(stacked, zip([0, *ends[:-1]], ends, strict=True), strict=True))
        self.ranges = [places[id(piece.first)] for piece in pieces]
        _set(layer, "first", _stack(list(stacked.values())))
        for index, piece in enumerate(pieces):
            second, position = piece.second, piece.position
            _set(layer, f"second_{index}", _on(second, device, self.dtype))
            layer.register_buffer(f"position_{index}", _on(position, device), persistent=False)
        self._lend_bases(layer.first)
        self._fill_bias(layer.bias, pieces)
        self.projections.clear()

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        z = nn.functional.linear(x, layer.first)
        parts = [
            multiply(
                z[..., start:end],
                getattr(layer, f"second_{index}"),
                getattr(layer, f"position_{index}"),
            )
            for index, (start, end) in enumerate(self.ranges)
        ]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if bias is None else y + bias

    def _tensor_names(self) -> list[str]:
        return sorted({name for projection in self.projections for name in projection.shapes})

    def _loader(self, name: str) -> Any:
        def load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
            self._projection(shard).take(name, loaded)

        return load

    def _projection(self, shard: Any) -> Projection:
        """The one that vLLM's shard id means: None, "q", "k", "v", or a number."""
        if len(self.projections) == 1:
            return self.projections[0]
        index = _QKV.get(shard, shard)
        if not isinstance(index, int):
            raise ValueError(f"{self.prefix}: the checkpoint has parts {shard!r} in one tensor")
        return self.projections[index]

    def _pieces(self, has_bias: bool) -> list[Piece]:
        pieces: dict[str, Piece] = {}
        for projection in self.projections:
            basis = None
            if projection.entry and (owner := projection.entry.basis):
                basis = pieces[owner].first if owner in pieces else self._borrowed(owner)
            pieces[projection.name] = projection.piece(basis, has_bias)
        return list(pieces.values())

    def _borrowed(self, owner: str) -> Tensor:
        if owner not in self.config.bases:
            raise ValueError(
                f"{self.prefix} needs the basis of {owner}, which is not in this process; "
                "serve it without pipeline parallelism"
            )
        return self.config.bases[owner]

    def _lend_bases(self, first: Tensor) -> None:
        for projection, (start, end) in zip(self.projections, self.ranges, strict=True):
            entry = projection.entry
            if entry is not None and entry.kind == "shared_basis" and entry.basis is None:
                self.config.bases[projection.name] = first.data[start:end]

    def _fill_bias(self, bias: nn.Parameter | None, pieces: list[Piece]) -> None:
        """The biases that came with factors; vLLM has loaded those of dense projections."""
        start = 0
        for projection, piece in zip(self.projections, pieces, strict=True):
            end = start + len(projection.share.rows)
            if bias is not None and piece.bias is not None:
                bias.data[start:end].copy_(piece.bias)
            start = end


def _set(layer: Any, name: str, tensor: Tensor | None) -> None:
    parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
    layer.register_parameter(name, parameter)


def _stack(tensors: list[Tensor]) -> Tensor:
    """One alone stays itself, so that a basis of several layers is held once."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _on(
    tensor: Tensor | None, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor | None:
    return None if tensor is None else tensor.to(device, dtype)
