"""A linear layer of vLLM whose projections are factored, each with its own rank.

All `first` factors of a fused layer stand in one matrix, so that what depends on the input is
one product; dense projections stand there whole, and their rows of it are their outputs:

    z = [right_q; right_k; W_v] x,    y = [left_q z_q, left_k z_k, z_v]

In a tensor-parallel group `left` is cut where vLLM cuts outputs, `right` where it cuts inputs
(`tensor_parallel`). Row-parallel layers end in vLLM's own sum over the group, which is right
for partial outputs because every form here is linear in z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase

from spectrim_vllm.config_entries import Entry, projections
from spectrim_vllm.placeholders import add_placeholders, remove_placeholders
from spectrim_vllm.projection import Projection
from spectrim_vllm.sharding import joined_rows, local_columns, local_rows, whole_sizes
from spectrim_vllm.tensor_parallel import (
    LocalFactors,
    LocalSlice,
    multiply,
    sparse_product,
)

_QKV = {"q": 0, "k": 1, "v": 2}


class FactoredLinearMethod(LinearMethodBase):
    """The method of one layer of vLLM's model.

    Attributes:
        entries: Factored layers of the whole model, by name.
        bases: The bases of the whole model that several layers use, filled as layers load.
        packed: vLLM's `packed_modules_mapping`.
        projections: Collect the tensors of this layer.
        ranges: The start and end of each projection's z in the stacked product.
    """

    def __init__(
        self,
        prefix: str,
        entries: Mapping[str, Entry],
        bases: dict[str, Tensor],
        packed: Mapping[str, Sequence[str]],
    ):
        self.prefix = prefix
        self.entries = entries
        self.bases = bases
        self.packed = packed
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
        """Add empty parameters under the checkpoint's names, whose loaders collect tensors."""
        names = projections(self.prefix, self.packed, len(output_partition_sizes))
        whole = whole_sizes(layer, output_partition_sizes, output_size)
        rows = local_rows(layer, output_partition_sizes, whole)
        if len(names) == 1:
            whole, rows = [sum(whole)], [joined_rows(rows, whole)]
        columns = local_columns(layer, input_size_per_partition, input_size)
        for name, out, own_rows in zip(names, whole, rows, strict=True):
            local = LocalSlice((out, input_size), own_rows, columns)
            self.projections.append(Projection(name, self.entries.get(name), local))
        self.dtype = params_dtype
        add_placeholders(layer, self._tensor_names(), self._loader)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Replace the empty parameters by the matrices to multiply with.

        Raises:
            ValueError: A tensor is missing in the checkpoint.
        """
        device = remove_placeholders(layer, self._tensor_names())
        parts = self._local_factors(layer.bias is not None)
        stacked = {id(part.first): part.first.to(device, self.dtype) for part in parts}
        ends = list(accumulate(len(first) for first in stacked.values()))
        places = dict(zip(stacked, zip([0, *ends[:-1]], ends, strict=True), strict=True))
        self.ranges = [places[id(part.first)] for part in parts]
        _set(layer, "first", _stack(list(stacked.values())))
        for index, part in enumerate(parts):
            second, position = part.second, part.position
            _set(layer, f"second_{index}", _on(second, device, self.dtype))
            layer.register_buffer(f"position_{index}", _on(position, device), persistent=False)
            _set(layer, f"values_{index}", _on(part.values, device, self.dtype))
            columns = _on(part.columns, device)
            layer.register_buffer(f"columns_{index}", columns, persistent=False)
        self._lend_bases(layer.first)
        self._fill_bias(layer.bias, parts)
        self.projections.clear()

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        z = nn.functional.linear(x, layer.first)
        parts = []
        for index, (start, end) in enumerate(self.ranges):
            second, position, values, columns = (
                getattr(layer, f"{name}_{index}")
                for name in ("second", "position", "values", "columns")
            )
            part = multiply(z[..., start:end], second, position)
            parts.append(part if values is None else part + sparse_product(x, values, columns))
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if bias is None else y + bias

    def _tensor_names(self) -> list[str]:
        return sorted({name for projection in self.projections for name in projection.shapes})

    def _loader(self, name: str) -> Any:
        def load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
            self._projection(shard).take(name, loaded)

        return load

    def _projection(self, shard: Any) -> Projection:
        """Return the projection of vLLM's shard id: None, "q", "k", "v", or a number."""
        if len(self.projections) == 1:
            return self.projections[0]
        index = _QKV.get(shard, shard)
        if not isinstance(index, int):
            raise ValueError(f"{self.prefix}: the checkpoint has parts {shard!r} in one tensor")
        return self.projections[index]

    def _local_factors(self, has_bias: bool) -> list[LocalFactors]:
        parts: dict[str, LocalFactors] = {}
        for projection in self.projections:
            basis = None
            if projection.entry and (owner := projection.entry.basis):
                basis = parts[owner].first if owner in parts else self._borrowed(owner)
            parts[projection.name] = projection.local_factors(basis, has_bias)
        return list(parts.values())

    def _borrowed(self, owner: str) -> Tensor:
        if owner not in self.bases:
            raise ValueError(
                f"{self.prefix} needs the basis of {owner}, which another process holds; "
                "serve the model without pipeline parallelism"
            )
        return self.bases[owner]

    def _lend_bases(self, first: Tensor) -> None:
        for projection, (start, end) in zip(self.projections, self.ranges, strict=True):
            entry = projection.entry
            if entry is not None and entry.kind == "shared_basis" and entry.basis is None:
                self.bases[projection.name] = first.data[start:end]

    def _fill_bias(self, bias: nn.Parameter | None, parts: list[LocalFactors]) -> None:
        """Copy the biases of factored projections; vLLM loads those of dense ones."""
        start = 0
        for projection, part in zip(self.projections, parts, strict=True):
            end = start + len(projection.local.rows)
            if bias is not None and part.bias is not None:
                bias.data[start:end].copy_(part.bias)
            start = end


def _set(layer: Any, name: str, tensor: Tensor | None) -> None:
    parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
    layer.register_parameter(name, parameter)


def _stack(tensors: list[Tensor]) -> Tensor:
    """Concatenate; a single tensor is returned itself, so a shared basis is held once."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _on(
    tensor: Tensor | None, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor | None:
    return None if tensor is None else tensor.to(device, dtype)
