"""Default tokens, batch and covariance format of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from spectrim.calibration import CalibrationSettings
from spectrim.calibration.any_rows import check_statistics
from spectrim.calibration.in_memory import Rows
from spectrim.data.labeled import LabeledRows
from spectrim.models.context import context_length
from spectrim.models.targets import Target, find_targets
from spectrim.pipeline.recipe import Recipe
from spectrim.statistics import FEW_TOKENS, is_few

TOKENS_PER_WIDTH = 96
"""Tokens of a calibration for each number of a hidden state, where the recipe gives none."""
FEWEST_TOKENS, MOST_TOKENS = 2**16, 2**19
TASK_ROWS = 256
MOST_TOKENS_PER_BATCH = 1024
"""Larger batches are no faster on a processor, and hold more activations."""
SMALLEST_ROOM = 256 * 2**20
"""Bytes for activations that even the smallest model may use."""
ROW_ROOM = 3
"""Activations of one row, in bytes of the model in float32."""


def vocabulary_size(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return embedding.num_embeddings


def default_length(model: PreTrainedModel) -> int:
    """Return half the context, clamped to 256 .. 2048 tokens and to the context."""
    context = context_length(model) or 2048
    return min(context, max(256, min(2048, context // 2)))


def calibration_length(model: PreTrainedModel) -> int:
    """Return the default length, shortened until a row's activations fit `ROW_ROOM` models.

    A row is the least that a backward pass holds at once. Its length is a power of two times
    the default one, 256 tokens or more.
    """
    room = ROW_ROOM * 4 * sum(p.numel() for p in model.parameters())
    most = max(room, SMALLEST_ROOM) // _bytes_per_token(model, find_targets(model))
    length = default_length(model)
    while length > max(256, most):
        length = max(256, length // 2)
    return length


def default_sequences(model: Any, length: int) -> int:
    """Return the sequences that hold as many tokens as covariances of this width need."""
    tokens = TOKENS_PER_WIDTH * model.get_input_embeddings().embedding_dim
    return -(-min(MOST_TOKENS, max(FEWEST_TOKENS, tokens)) // length)


def batch_tokens(model: PreTrainedModel, targets: Sequence[Target]) -> int:
    """Return the tokens whose activations fit the memory that weight gradients would take."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    most = max(weights, SMALLEST_ROOM) // _bytes_per_token(model, targets)
    return min(MOST_TOKENS_PER_BATCH, most)


def _bytes_per_token(model: PreTrainedModel, targets: Sequence[Target]) -> int:
    """Count two float32 numbers per input and output of a linear layer, three per logit."""
    widths = sum(sum(target.shape) for target in targets)
    return 8 * widths + 12 * vocabulary_size(model)


def calibration_settings(
    model: PreTrainedModel, targets: Sequence[Target], blocks: Rows, recipe: Recipe
) -> CalibrationSettings:
    """Return the statistics, labels, batches and forms of the recipe's passes over `blocks`."""
    given = recipe.calibration
    if isinstance(blocks, LabeledRows):
        check_statistics(recipe.statistics)
    return CalibrationSettings(
        recipe.statistics,
        given.labels,
        given.tokens_per_batch or batch_tokens(model, targets),
        given.seed or 0,
        given.temperature,
        memory_budget=given.memory_budget,
        wide="full" if is_few_tokens(blocks, targets) else recipe.wide,
    )


def few_tokens_note(blocks: Rows, targets: Sequence[Target]) -> dict[str, Any]:
    """Return what the provenance notes where covariances are to be shrunk."""
    return {FEW_TOKENS: True} if is_few_tokens(blocks, targets) else {}


def is_few_tokens(blocks: Rows, targets: Sequence[Target]) -> bool:
    """Return whether covariances of these tokens are to be shrunk."""
    widest = max((max(target.shape) for target in targets), default=0)
    return is_few(blocks.fewest_tokens, widest)
