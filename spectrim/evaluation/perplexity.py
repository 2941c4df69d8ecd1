"""Token perplexity on rows of fixed length: exp(total loss / number of predicted tokens).

    PPL = exp( sum_{n, t >= 1} -log p(ids[n, t] | ids[n, :t]) / count )

The first token of a row is context only. Not the word-level perplexity of other tools.
"""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.errors import InputError, NumericalError
from spectrim.evaluation._forward import (
    Batch,
    BatchOptions,
    check_readable,
    fitting_batches,
    log_probabilities,
    logits,
)
from spectrim.models.hooks import inference
from spectrim.runtime import distributed

NEEDS_ORIGINAL = False
COMMAND = "spectrim evaluate MODEL OUT --data TEXT"
Options = BatchOptions


def evaluate(
    model: PreTrainedModel,
    blocks: TokenBlocks,
    options: BatchOptions,
    reference: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Return `perplexity`, `loss` (nats per token) and `predicted_tokens`.

    Raises NumericalError naming the batch whose loss is not finite.
    """
    losses, counts = row_losses(model, blocks, options)
    return _figures(losses, counts)


def per_document(
    model: PreTrainedModel, blocks: TokenBlocks, options: BatchOptions
) -> dict[str, float]:
    """Return `evaluate`'s figures and `median_document_perplexity` of `document_blocks` rows.

    Raises InputError for rows that span documents; NumericalError as `evaluate` does.
    """
    if blocks.document_of_row is None:
        raise InputError("these rows span documents; build them with document_blocks")
    losses, counts = row_losses(model, blocks, options)
    empty = torch.zeros(blocks.documents, dtype=torch.float64)
    by_document = empty.index_add(0, blocks.document_of_row, losses)
    tokens = empty.index_add(0, blocks.document_of_row, counts.double())
    scored = tokens > 0
    perplexities = (by_document[scored] / tokens[scored]).exp().tolist()
    return _figures(losses, counts) | {
        "median_document_perplexity": median(perplexities),
        "scored_documents": len(perplexities),
    }


def row_losses(
    model: PreTrainedModel, blocks: TokenBlocks, options: BatchOptions
) -> tuple[Tensor, Tensor]:
    """Return summed loss (N,) in float64 and predicted tokens (N,) of each row.

    Several processes share the batches, and all return identical figures.
    """
    check_readable(model, blocks)
    losses = torch.zeros(len(blocks), dtype=torch.float64)
    counts = torch.zeros(len(blocks), dtype=torch.int64)
    with distributed.raise_together(), inference(model):
        for batch in distributed.shard(fitting_batches(model, blocks, options.batch_size)):
            batch_losses = _batch_losses(model, batch)
            _check_finite(batch_losses, batch)
            losses[batch.rows] = batch_losses
            counts[batch.rows] = batch.predicted.sum(1)
    distributed.all_reduce_sum_([losses, counts])
    return losses, counts


def _batch_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    predicted = batch.predicted
    rows = zip(logits(model, batch), batch.ids, predicted, strict=True)
    return torch.stack([_row_loss(*row) for row in rows])


def _row_loss(logits_tv: Tensor, ids: Tensor, predicted: Tensor) -> Tensor:
    targets = ids[1:].to(logits_tv.device)[:, None]
    log_p = log_probabilities(logits_tv[:-1]).gather(1, targets)[:, 0]
    return -log_p.cpu()[predicted].sum(dtype=torch.float64)


def _check_finite(losses: Tensor, batch: Batch) -> None:
    if not losses.isfinite().all():
        bad = [batch.start + i for i in (~losses.isfinite()).nonzero()[:, 0].tolist()]
        raise NumericalError(
            f"the loss of {batch.describe()} is not finite (rows {bad}): the model's weights "
            "or its 16-bit arithmetic overflow; try float32, or compress less"
        )


def _figures(losses: Tensor, counts: Tensor) -> dict[str, float]:
    tokens = int(counts.sum())
    loss = float(losses.sum()) / tokens
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"perplexity": perplexity, "loss": loss, "predicted_tokens": tokens}
