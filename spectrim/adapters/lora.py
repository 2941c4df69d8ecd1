"""LoRA adapters of PEFT on every factor at once, trained on the next token and merged.

    min_{A, B}  E_t[-log p(x_t | x_<t)],    W_i + (alpha / rank) B_i A_i,   all W_i fixed

over the scored tokens. A factor (out, in) stays one of its shape, so ranks and bytes stay. This
is the usual adapter of the ecosystem (extra `peft`); SVD-LLM's trains one side after the other
(refinement `svd_llm_lora`). Source: Hu et al., 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.adapters.targets import lora_targets
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.runtime.context import RunContext
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import EpochOptions


@dataclass(frozen=True)
class AdapterOptions(EpochOptions):
    """rank of the adapters, at most that of a factor; alpha None: twice the rank; the rest as
    in the refinement `finetune`."""

    learning_rate: float = 2e-3
    rank: int = 8
    alpha: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise InputError(f"the rank of an adapter has to be positive, got {self.rank}")


def train_adapters(
    model: PreTrainedModel, blocks: TokenBlocks, options: AdapterOptions, context: RunContext
) -> Losses:
    """Train the factors of `model`; after an error it is what it was before.

    Raises InputError where PEFT is missing, NumericalError naming a step that is not finite.
    """
    key = TrainingInputs(model, model, blocks).key("adapters", options)
    rows = task_rows(blocks)
    with _adapted(model, options) as adapted:
        loss = partial(next_token_loss, adapted, rows, "float32")
        trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
        stage = Stage("adapters", trained, loss, len(rows))
        run = TrainingRun(trained, key, context)
        losses = run.complete([stage], options.schedule(len(rows)))
        adapted.merge_and_unload()
    return losses


def _adapted(model: PreTrainedModel, options: AdapterOptions) -> AbstractContextManager[Any]:
    """Return the context in which the model has LoRA on its factors or layers."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError(
            f"PEFT is not installed ({error}): pip install 'spectrim[peft]'"
        ) from None
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha or 2 * options.rank,
        target_modules=lora_targets(model),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return attached(model, config, options.seed)


@contextmanager
def attached(model: PreTrainedModel, config: Any, seed: int) -> Iterator[Any]:
    """Put an adapter of PEFT on the model, drawn from the seed; take it off on leaving."""
    from peft import get_peft_model

    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    training = model.training
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # of what PEFT itself asks transformers for
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(model, config)
    try:
        yield adapted.eval()
    finally:
        adapted.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        model.train(training)
        for name, parameter in model.named_parameters():  # quantized layers may bring some
            parameter.requires_grad_(flags.get(name, True))
