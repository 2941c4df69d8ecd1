"""The timed workloads: reading a prompt, and writing tokens one by one after it.

Both call the model as `generate` does: a key/value cache, logits of the last position only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class Prefill:
    """Tokens (batch, length) through the model at once."""

    def __init__(self, model: PreTrainedModel, batch: int, length: int):
        self.model = model
        self.ids = random_tokens(model, batch, length)
        self.last = {"logits_to_keep": 1, "use_cache": True} if decodes(model) else {}

    @torch.inference_mode()
    def __call__(self) -> Any:
        return self.model(input_ids=self.ids, **self.last)


class Decode:
    """`steps` tokens one after another, each of `batch` rows, after `length` others."""

    def __init__(self, model: PreTrainedModel, batch: int, length: int, steps: int):
        self.model, self.steps = model, steps
        self.next = random_tokens(model, batch, 1)
        self.cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            self._forward(random_tokens(model, batch, length))

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(self.steps):
            self._forward(self.next)
        self.cache.crop(-self.steps)

    def _forward(self, ids: Tensor) -> None:
        self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)


def decodes(model: PreTrainedModel) -> bool:
    """Return whether the model generates text: an encoder has a prefill only."""
    return bool(model.can_generate())


def random_tokens(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    embedding: Any = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, embedding.num_embeddings, (batch, length), generator=generator)
    return ids.to(next(model.parameters()).device)
