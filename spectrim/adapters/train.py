"""Train a spectral adapter on the next token: the loop of `spectrim finetune --adapter`.

    min  E_t[-log p(x_t | x_<t)] + penalty * mean over layers of the method's regularizer

over the trained tensors alone. The training runs in a PEFT model around the given one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from spectrim.adapters import ADAPTERS, config_class
from spectrim.adapters._quantized import even_ranks, is_quantized
from spectrim.adapters.lora import AdapterOptions, attached
from spectrim.adapters.qlora import quantized_key
from spectrim.data import TokenBlocks
from spectrim.runtime.context import RunContext
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.run import TrainingRun

_ROWS_FOR_STATISTICS = 256


@dataclass(frozen=True)
class SpectralOptions:
    """adapter: a name of `ADAPTERS`. options: fields of its configuration. training: the
    steps; its rank and alpha are not read. A rate of None is the method's."""

    adapter: str
    options: dict[str, Any] = field(default_factory=dict)
    training: AdapterOptions = field(default_factory=AdapterOptions)

    @classmethod
    def of(
        cls, adapter: str, options: dict[str, Any], training: dict[str, Any]
    ) -> SpectralOptions:
        rate = {"learning_rate": ADAPTERS.get(adapter).LEARNING_RATE}
        return cls(adapter, options, AdapterOptions(**(rate | training)))


def train_spectral(
    model: PreTrainedModel,
    blocks: TokenBlocks,
    options: SpectralOptions,
    context: RunContext,
    *,
    directory: str | Path | None = None,
) -> Losses:
    """Train an adapter on `model` and merge it; after an error the model is what it was.

    Args:
        directory: where the adapter itself is saved, in the form of PEFT.

    Raises:
        InputError: PEFT is missing, or the method does not take an option.
        NumericalError: a step is not finite; the message names it.
    """
    inputs = TrainingInputs(model, model, blocks)
    key = inputs.key("spectral", options)
    if is_quantized(model):
        key |= {"weights": quantized_key(model)}
    rows = task_rows(blocks)
    with _adapted(model, blocks, options) as adapted:
        loss = partial(_loss, adapted, rows)
        trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
        stage = Stage("adapters", trained, loss, len(rows))
        run = TrainingRun(trained, key, context)
        losses = run.complete([stage], options.training.schedule(len(rows)))
        if directory is not None:
            adapted.save_pretrained(str(directory))
        adapted.merge_and_unload()
    if is_quantized(model):
        even_ranks(model)
    return losses


def _loss(adapted: Any, rows: Any, chosen: Tensor) -> Tensor:
    from spectrim.adapters._tuner import penalty

    loss = next_token_loss(adapted, rows, "float32", chosen)
    weight = adapted.peft_config["default"].penalty
    return loss + weight * penalty(adapted) if weight else loss


def _adapted(
    model: PreTrainedModel, blocks: TokenBlocks, options: SpectralOptions
) -> AbstractContextManager[Any]:
    """Return the context in which the model has the adapter."""
    config = config_class(options.adapter)(task_type="CAUSAL_LM", **options.options)
    from spectrim.adapters._statistics import with_statistics

    few = blocks.every(max(1, len(blocks) // _ROWS_FOR_STATISTICS))
    config = with_statistics(config, model, few)
    return attached(model, config, options.training.seed)
