"""The quantization config through which vLLM selects the method of each layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from spectrim_vllm import QUANT_METHOD
from spectrim_vllm.config_entries import Entry, projections, read_entries
from spectrim_vllm.linear import FactoredLinearMethod


class SpectrimConfig(QuantizationConfig):
    """Return a checkpoint's config in the names of vLLM's model.

    Attributes:
        entries: Factored layers by name.
        bases: The `right` of each layer whose basis others use too, filled as layers load.
    """

    def __init__(self, entries: dict[str, Entry]):
        super().__init__()
        self.entries = entries
        self.bases: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpectrimConfig:
        return cls(read_entries(config))

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.float16, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        entries = {
            name: replace(entry, basis=hf_to_vllm_mapper.apply_list([entry.basis])[0])
            if entry.basis
            else entry
            for name, entry in self.entries.items()
        }
        self.entries = hf_to_vllm_mapper.apply_dict(entries)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return our method if a projection of the layer is factored.

        Raises:
            ValueError: A factored module is not one of vLLM's linear layers.
        """
        names = projections(prefix, self.packed_modules_mapping)
        factored = [name for name in names if name in self.entries]
        if isinstance(layer, LinearBase):
            if not factored:
                return UnquantizedLinearMethod()
            packed = self.packed_modules_mapping
            return FactoredLinearMethod(prefix, self.entries, self.bases, packed)
        if factored:
            kind = "output head" if isinstance(layer, VocabParallelEmbedding) else "module"
            raise ValueError(
                f"{factored[0]} is factored, and vLLM cannot hold a factored {kind}; "
                "serve what `spectrim export --dense` writes"
            )
        return None
