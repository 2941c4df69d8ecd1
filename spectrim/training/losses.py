"""Losses of a compressed model against the original, and the step size that they allow.

    rate = learning_rate * min(1, sqrt(KL(original || compressed)))    in nats per token

A model that has little to mend is easily spoilt: its best rate is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.data.tasks import TaskRows, task_loss
from spectrim.training.forward import Precision, Tokens
from spectrim.training.sampled_sizes import SampledSizes
from spectrim.training.schedule import Schedule

Scaling = Literal["none", "kl"]
_PROBED = 32
"""Sequences that the distance at the start is measured on."""


def scale_by_divergence(
    schedule: Schedule,
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    tokens: Tokens,
    sizes: SampledSizes | None = None,
) -> Schedule:
    """Return the schedule with the rate for this distance, on the first sequences.

    sizes: of a model that holds several; the distance is then the mean over them.
    """
    chunks = torch.arange(min(len(tokens), _PROBED)).split(schedule.rows)
    found = []
    for cut in [nullcontext()] if sizes is None else sizes.evenly(compressed):
        with cut:
            found.append(mean_divergence(original, compressed, tokens, chunks))
    away = sum(found) / len(found)
    share = min(1.0, max(0.0, away) ** 0.5)
    return replace(schedule, learning_rate=schedule.learning_rate * share)


@torch.no_grad()
def mean_divergence(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    tokens: Tokens,
    chunks: Sequence[Tensor],
) -> float:
    """Return KL(original || compressed) per real position; chunks: indices (B,) in a batch."""
    total, count = 0.0, 0
    for chunk in chunks:
        wanted = tokens.run(original, chunk).logits
        logits = tokens.run(compressed, chunk).logits
        real = tokens.real(chunk)
        total += float(divergence(wanted, logits, real)) * int(real.sum())
        count += int(real.sum())
    return total / count


def divergence(wanted: Tensor, logits: Tensor, real: Tensor) -> Tensor:
    """Return the mean KL over real positions; wanted, logits (B, T, V), real (B, T) bool."""
    log_p = wanted[real].float().log_softmax(-1)
    log_q = logits[real].float().log_softmax(-1)
    return kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def next_token_loss(
    model: PreTrainedModel, rows: TaskRows, precision: Precision, chosen: Tensor
) -> Tensor:
    """Return the mean cross-entropy over the scored tokens of the rows `chosen` (B,)."""
    lower = precision != "float32"
    with torch.autocast(model.device.type, getattr(torch, precision), enabled=lower):
        summed, tokens = task_loss(model, rows.batch(chosen))
    return summed / tokens


def task_rows(blocks: TokenBlocks) -> TaskRows:
    """Return the blocks as rows; every token that follows one is scored if none is marked."""
    mask = torch.ones_like(blocks.ids, dtype=torch.bool) if blocks.mask is None else blocks.mask
    scored = blocks.scored
    if scored is None:
        scored = torch.zeros_like(mask)
        scored[:, 1:] = mask[:, 1:] & mask[:, :-1]
    return TaskRows(blocks.ids, mask, scored, blocks.fingerprint, blocks.source)
