"""Divergence of the compressed model's predictions: KL(original || compressed) per token.

    KL = mean_{n, t} sum_v p(v) (log p(v) - log q(v)),   p original, q compressed

over the positions that perplexity scores; top-1 agreement is how often argmax p = argmax q.
The increase of the loss on the text's own tokens is measured by the same passes:

    loss_increase = mean_{n, t} (log p(ids[n, t]) - log q(ids[n, t]))
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import kl_div
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

NEEDS_ORIGINAL = True
_TOTALS = ("divergence", "agreed", "loss", "reference_loss", "tokens")
_LARGEST_LOSS = 700.0
"""Nats whose exponential a float holds."""
COMMAND = "spectrim evaluate OUT --original MODEL --data TEXT"
Options = BatchOptions


def evaluate(
    model: PreTrainedModel,
    blocks: TokenBlocks,
    options: BatchOptions,
    reference: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Return the figures, per token of the text.

    `kl_divergence` and `loss_increase` are in nats, `top1_agreement` is a fraction,
    `reference_perplexity` the original's on the same tokens.

    Raises InputError without a `reference` of the same vocabulary; NumericalError naming
    the batch whose divergence is not finite.
    """
    if reference is None:
        raise InputError("kl_divergence compares with the original model; give it as reference")
    check_readable(model, blocks)
    check_readable(reference, blocks)
    totals = torch.zeros(len(blocks), len(_TOTALS), dtype=torch.float64)
    with distributed.raise_together(), inference(model, reference):
        for batch in distributed.shard(fitting_batches(model, blocks, options.batch_size)):
            totals[batch.rows] = _batch_totals(model, reference, batch)
    distributed.all_reduce_sum_([totals])
    sums = dict(zip(_TOTALS, totals.sum(0).tolist(), strict=True))
    means = {name: value / sums["tokens"] for name, value in sums.items()}
    return {
        "kl_divergence": means["divergence"],
        "top1_agreement": means["agreed"],
        "loss_increase": means["loss"] - means["reference_loss"],
        "reference_perplexity": math.exp(min(means["reference_loss"], _LARGEST_LOSS)),
    }


def _batch_totals(model: PreTrainedModel, reference: PreTrainedModel, batch: Batch) -> Tensor:
    """Return (B, 5): `_TOTALS` of each row."""
    original, compressed = logits(reference, batch), logits(model, batch)
    if original.shape != compressed.shape:
        raise InputError(
            f"the model predicts {compressed.shape[-1]} tokens, the reference "
            f"{original.shape[-1]}; expected two models of one vocabulary"
        )
    rows = zip(original, compressed, batch.ids, batch.predicted, strict=True)
    totals = torch.stack([_row_totals(*row) for row in rows])
    if not totals.isfinite().all():
        raise NumericalError(
            f"the divergence of {batch.describe()} is not finite: a model's weights or its "
            "16-bit arithmetic overflow; try float32, or compress less"
        )
    return totals


def _row_totals(
    original_tv: Tensor, compressed_tv: Tensor, ids: Tensor, predicted: Tensor
) -> Tensor:
    log_p = log_probabilities(original_tv[:-1])
    log_q = log_probabilities(compressed_tv[:-1].to(log_p.device))
    divergence = kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    agreed = log_p.argmax(-1) == log_q.argmax(-1)
    targets = ids[1:].to(log_p.device)[:, None]
    losses = [-log.gather(1, targets)[:, 0] for log in (log_q, log_p)]
    figures = torch.stack([divergence, agreed, *losses, torch.ones_like(divergence)], dim=-1)
    return figures.cpu()[predicted].sum(0, dtype=torch.float64)
