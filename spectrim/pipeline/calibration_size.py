"""Default sizes of a calibration: tokens per row, rows, and tokens per batch."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from spectrim.models.context import context_length
from spectrim.models.targets import Target

TOKENS_PER_WIDTH = 96
"""Tokens of a calibration for each number of a hidden state, where the recipe gives none."""
FEWEST_TOKENS, MOST_TOKENS = 2**16, 2**19
TASK_ROWS = 256
MOST_TOKENS_PER_BATCH = 1024
"""Larger batches are no faster on a processor, and hold more activations."""
SMALLEST_ROOM = 256 * 2**20
"""Bytes for activations that even the smallest model may use."""


def vocabulary_size(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return embedding.num_embeddings


def default_length(model: PreTrainedModel) -> int:
    """Return half the context, clamped to 256 .. 2048 tokens and to the context."""
    context = context_length(model) or 2048
    return min(context, max(256, min(2048, context // 2)))


def default_sequences(model: Any, length: int) -> int:
    """Return the sequences that hold as many tokens as covariances of this width need."""
    tokens = TOKENS_PER_WIDTH * model.get_input_embeddings().embedding_dim
    return -(-min(MOST_TOKENS, max(FEWEST_TOKENS, tokens)) // length)


def batch_tokens(model: PreTrainedModel, targets: list[Target]) -> int:
    """Return the tokens whose activations fit the memory that weight gradients would take.

    A backward pass holds about two float32 numbers per input and output of a linear layer,
    and three per logit.
    """
    widths = sum(sum(target.shape) for target in targets)
    bytes_per_token = 8 * widths + 12 * vocabulary_size(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return min(MOST_TOKENS_PER_BATCH, max(weights, SMALLEST_ROOM) // bytes_per_token)
