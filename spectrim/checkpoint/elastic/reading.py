"""Read one size of an elastic checkpoint: of each layer the bytes of its rank alone.

Transformers reads what belongs to no elastic layer, and the dense weights of those that are
dense at the size. The components of the others are taken here as slices of the same files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spectrim.allocation import NestedSizes
from spectrim.errors import CheckpointError
from spectrim.layers import layer_class, split_components
from spectrim.layers.quantized import cut_quantized, empty_quantized
from spectrim.layers.quantized.rtn import Options


@dataclass(frozen=True)
class ElasticFiles:
    """The tensors of an elastic checkpoint by name.

    Attributes:
        files: the file that holds each tensor.
        sizes: what can be cut from them.
        rounding: the options that components are quantized by, None where they are not.
    """

    files: Mapping[str, Path]
    sizes: NestedSizes
    rounding: Options | None = None

    @classmethod
    def of(
        cls,
        paths: Iterable[str | Path],
        sizes: NestedSizes,
        rounding: Options | None = None,
    ) -> ElasticFiles:
        """Open the headers. Raises CheckpointError for files that are no safetensors."""
        files: dict[str, Path] = {}
        for path in map(Path, paths):
            try:
                with safe_open(path, framework="pt") as file:
                    files |= dict.fromkeys(file.keys(), path)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
        return cls(files, sizes, rounding)

    def factors(self, name: str, rank: int) -> tuple[Tensor, Tensor]:
        """Return left (out, rank) and right (rank, in) of a layer.

        Raises CheckpointError for a tensor that is missing or misshapen.
        """
        layer = self.sizes.layers[name]
        rows = self._slice(f"{name}.components", (layer.components, sum(layer.shape)), rank)
        return split_components(rows, layer.shape[0])

    def bias(self, name: str) -> Tensor | None:
        """Return the bias of a layer as stored, or None."""
        full = f"{name}.bias"
        if full not in self.files:
            return None
        out_features = self.sizes.layers[name].shape[0]
        return self._slice(full, (out_features,), out_features)

    def dense_weight(self, name: str) -> Tensor:
        """Return the dense weight of a layer as the dense layer stores it."""
        return self._slice(f"{name}.weight", None, None)

    def layer(self, name: str, rank: int | None) -> nn.Module:
        """Return the layer cut to `rank`: in float64, or as it is quantized.

        Raises CheckpointError for tensors that are missing or misshapen.
        """
        if self.rounding is not None:
            return self._quantized(name, rank, self.rounding)
        assert rank is not None
        left, right = (factor.double() for factor in self.factors(name, rank))
        return layer_class(self.sizes.kind).from_factors(left, right, self.bias(name))

    def _quantized(self, name: str, rank: int | None, options: Options) -> nn.Module:
        layer = self.sizes.layers[name]
        held = layer.components, layer.has_dense
        whole = dict(empty_quantized(layer.shape, *held, False, options).named_buffers())

        def read(tensor: str, entries: int) -> Tensor:
            return self._slice(f"{name}.{tensor}", tuple(whole[tensor].shape), entries)

        return cut_quantized(layer.shape, rank, self.bias(name), options, read)

    def dense(self, name: str) -> Tensor:
        """Return the product of all components, in float64 (out, in)."""
        left, right = self.factors(name, self.sizes.layers[name].components)
        return left.double() @ right.double()

    def _slice(self, name: str, shape: tuple[int, ...] | None, rows: int | None) -> Tensor:
        if name not in self.files:
            raise CheckpointError(f"the elastic checkpoint has no {name}; it is incomplete")
        try:
            with safe_open(self.files[name], framework="pt") as file:
                stored = file.get_slice(name)
                found = tuple(stored.get_shape())
                if shape is not None and found != shape:
                    raise CheckpointError(f"{name} is {found} in the files, expected {shape}")
                return stored[:rows]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.files[name]} cannot be read: {error}") from error
