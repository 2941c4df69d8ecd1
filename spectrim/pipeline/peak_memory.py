"""The memory that compressing a model takes in this process, before it is compressed."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from spectrim.models.targets import decoder_blocks
from spectrim.pipeline.calibration_defaults import batch_tokens
from spectrim.pipeline.memory_plan import MemoryEstimate
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.memory import resident_bytes


class LoadedParts:
    """Sizes of a model in memory that `MemoryEstimate` reads."""

    def __init__(self, model: PreTrainedModel):
        self.model: Any = model
        self.blocks = [name for name, _ in decoder_blocks(model)]

    @property
    def total_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def part_of(self, layer: str) -> str:
        """Return the block that holds a layer, or the layer itself outside of them."""
        return next((name for name in self.blocks if layer.startswith(name + ".")), layer)


def peak_in_memory(model: PreTrainedModel, recipe: Recipe) -> int:
    """Return an upper bound of the bytes that compressing a loaded model takes in all."""
    parts = LoadedParts(model)
    base = max(0, resident_bytes() - parts.total_bytes)
    needs = MemoryEstimate.of_parts(parts, recipe, base)
    tokens = recipe.calibration.tokens_per_batch or batch_tokens(model, list(needs.targets))
    return needs.peak(max(1, tokens // needs.length))
