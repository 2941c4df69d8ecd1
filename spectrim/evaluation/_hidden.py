"""The last hidden state of every token, for evaluators of representations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean

from torch import Tensor
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.errors import InputError, NumericalError
from spectrim.evaluation._forward import Batch, batches, check_readable
from spectrim.linalg.spectrum import token_directions
from spectrim.models.hooks import inference


def hidden_states(
    model: PreTrainedModel, blocks: TokenBlocks, batch_size: int
) -> Iterator[Tensor]:
    """Yield per row the states (L, d) of its real tokens, on the CPU, float32 or better.

    Raises NumericalError naming the batch whose states are not finite.
    """
    check_readable(model, blocks)
    with inference(model):
        for batch in batches(blocks, batch_size):
            yield from _rows(model, batch)


def mean_over_rows(
    model: PreTrainedModel,
    blocks: TokenBlocks,
    batch_size: int,
    figure: Callable[[Tensor], float],
) -> float:
    """Return the mean of `figure` over the token directions of rows of two tokens or more."""
    states = hidden_states(model, blocks, batch_size)
    found = [figure(token_directions(row)) for row in states if len(row) > 1]
    if not found:
        raise InputError("no row has two tokens; expected longer texts")
    return fmean(found)


def _rows(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    mask = None if batch.mask is None else batch.mask.long().to(model.device)
    output = model.base_model(
        input_ids=batch.ids.to(model.device), attention_mask=mask, use_cache=False
    )
    states = output.last_hidden_state.float().cpu()
    rows = [
        row if batch.mask is None else row[real]
        for row, real in zip(
            states, batch.ids if batch.mask is None else batch.mask, strict=True
        )
    ]
    if not all(bool(row.isfinite().all()) for row in rows):
        raise NumericalError(f"the hidden states of {batch.describe()} are not finite")
    return rows
