"""The number of tokens that a model reads at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import InputError


def context_length(model: Any) -> int | None:
    """Return how many tokens the model reads at most; None where its config has no limit.

    Where a table of positions has a row for padding, positions are counted from the row after
    it, and as many rows of the table are never reached.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    limit = limit or getattr(config, "max_target_positions", None)
    if not limit:
        return None
    words = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    lost = [
        table.padding_idx + 1
        for table in tables
        if table.num_embeddings == limit and table.padding_idx is not None
    ]
    return limit - max(lost, default=0)


def check_length(model: Any, length: int) -> None:
    """Raise InputError for rows that are longer than what the model reads."""
    context = context_length(model)
    if context and length > context:
        raise InputError(
            f"rows are {length} tokens long, the model reads at most {context}; "
            f"give --length {context} or less"
        )


def random_features(model: Any) -> Tensor:
    """Return features (1, channels, frames) as a model of speech like Whisper reads them."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = 1, config.num_mel_bins, 2 * config.max_source_positions
    return torch.randn(shape, generator=generator)
