"""Loss and accuracy on examples with labels, and divergence from the original.

    loss = mean of the model's own loss,  per target token or per example
    KL   = mean sum_v p(v) (log p(v) - log q(v)),  p original, q compressed

Means are over the labels that count. The token accuracy of a target is that of its next token
given the data's own ones before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from spectrim.calibration.labeled import LabeledBatch, labeled_batches
from spectrim.data.labeled import LabeledRows
from spectrim.errors import InputError, NumericalError
from spectrim.evaluation._forward import LOGITS_ROOM, log_probabilities
from spectrim.models.hooks import inference

_TOKENS = 2048
_LARGEST_LOSS = 700.0
"""Nats whose exponential a float holds."""


def evaluate_labeled(
    model: PreTrainedModel, rows: LabeledRows, reference: PreTrainedModel | None = None
) -> dict[str, float]:
    """Return the figures on the rows.

    `loss`, and of classes or target tokens `accuracy` or `token_accuracy` and `perplexity`;
    their number is `examples` or `target_tokens`. With a reference `loss_increase`,
    `reference_loss`, and of what has probabilities `kl_divergence` and `top1_agreement`.

    Raises InputError for a reference of other outputs; NumericalError for a loss that is not
    finite.
    """
    sums: dict[str, float] = {}
    count = 0
    with inference(model, *([] if reference is None else [reference])):
        for batch in _batches(model, rows):
            for name, value in _of_batch(model, reference, batch).items():
                sums[name] = sums.get(name, 0.0) + value
            count += batch.tokens
    return _figures({name: value / count for name, value in sums.items()}, rows, count)


def _batches(model: PreTrainedModel, rows: LabeledRows) -> Iterator[LabeledBatch]:
    outputs = model.config.get_text_config().vocab_size if rows.has_targets else 1
    tokens = max(1, min(_TOKENS, LOGITS_ROOM // (4 * outputs)))
    return labeled_batches(rows, tokens, 0, model.device)


def _of_batch(
    model: PreTrainedModel, reference: PreTrainedModel | None, batch: LabeledBatch
) -> dict[str, float]:
    """Return sums over the labels that count."""
    output = batch.run(model)
    found = {"loss": _finite(output.loss, batch) * batch.tokens}
    log_q, labels = None, batch.labels[batch.counted]
    if not batch.labels.is_floating_point():
        log_q = _counted(output, batch)
        found["accuracy"] = float((log_q.argmax(-1) == labels).sum())
    if reference is None:
        return found
    original = batch.run(reference)
    if original.logits.shape != output.logits.shape:
        raise InputError(
            f"the model has outputs {tuple(output.logits.shape)}, the reference "
            f"{tuple(original.logits.shape)}; expected two models of one kind"
        )
    found["reference_loss"] = _finite(original.loss, batch) * batch.tokens
    if log_q is not None:
        log_p = _counted(original, batch)
        divergence = kl_div(log_q, log_p, log_target=True, reduction="none")
        found["reference_accuracy"] = float((log_p.argmax(-1) == labels).sum())
        found["kl_divergence"] = float(divergence.sum(dtype=torch.float64))
        found["top1_agreement"] = float((log_p.argmax(-1) == log_q.argmax(-1)).sum())
    return found


def _counted(output: Any, batch: LabeledBatch) -> Tensor:
    """Return the log-probabilities (n, C) of the predictions that count."""
    return log_probabilities(output.logits[batch.counted])


def _finite(loss: Tensor, batch: LabeledBatch) -> float:
    if not torch.isfinite(loss):
        last = batch.first_sequence + batch.rows - 1
        raise NumericalError(
            f"the loss of examples {batch.first_sequence} to {last} is not finite: the model's "
            "weights or its 16-bit arithmetic overflow; try float32, or compress less"
        )
    return float(loss)


def _figures(means: dict[str, float], rows: LabeledRows, count: int) -> dict[str, float]:
    if "reference_loss" in means:
        means["loss_increase"] = means["loss"] - means["reference_loss"]
    if not rows.has_targets:
        return means | {"examples": count}
    means = {name.replace("accuracy", "token_accuracy"): value for name, value in means.items()}
    perplexity = math.exp(min(means["loss"], _LARGEST_LOSS))
    return {"perplexity": perplexity, **means, "target_tokens": count}
