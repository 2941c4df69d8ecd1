"""Adapters beside weights that are quantized and stay as they are (QLoRA).

    min_{A, B}  E_t[-log p(x_t | x_<t)],    Q(W_i) + B_i A_i,   all Q(W_i) fixed

over the scored tokens, for every factor and every layer that was left dense. They are not
merged, since the sum is no longer of few bits: a factor keeps its own beside it, a layer that
was left dense keeps a low-rank path. `B` starts at zero; the usual scale alpha / rank is part
of `A` from the beginning. Source: Dettmers et al., 2023, arXiv:2305.14314.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.adapters._quantized import (
    Holder,
    beside,
    is_quantized,
    put_beside,
    quantized_layers,
)
from spectrim.adapters.lora import AdapterOptions
from spectrim.data import TokenBlocks
from spectrim.errors import ModelError
from spectrim.layers.quantized import Adapter, CompressedLinear
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import Parameters
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.run import TrainingRun

__all__ = ["is_quantized", "quantized_key", "train_qlora"]


def train_qlora(
    model: PreTrainedModel, blocks: TokenBlocks, options: AdapterOptions, context: RunContext
) -> Losses:
    """Train adapters of `model`, new ones where it has none.

    After an error it is what it was before. Raises ModelError where nothing is quantized or
    the adapters have another rank, NumericalError naming a step that is not finite.
    """
    inputs = TrainingInputs(model, model, blocks)
    key = inputs.key("qlora", options) | {"weights": quantized_key(model)}
    rows = task_rows(blocks)
    loss = partial(next_token_loss, model, rows, "float32")
    with _adapted(model, options) as trained:
        stage = Stage("adapters", trained, loss, len(rows))
        run = TrainingRun(trained, key, context)
        return run.complete([stage], options.schedule(len(rows)))


def quantized_key(model: nn.Module) -> str:
    """sha256 over the stored numbers of all quantized weights."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear):
            for own, buffer in module.named_buffers():
                raw = buffer.detach().cpu().contiguous().view(torch.uint8)
                digest.update(f"{name}.{own}".encode() + raw.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _adapted(model: PreTrainedModel, options: AdapterOptions) -> Iterator[Parameters]:
    """Yield the adapters' parameters, by name; nothing else has a gradient inside."""
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    training = model.training
    holders = quantized_layers(model)
    before = [beside(holder) for holder in holders.values()]
    values = [p.detach().clone() for parts in before for m in parts for p in m.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield _added(holders, options)
    except BaseException:
        for holder, parts in zip(holders.values(), before, strict=True):
            put_beside(holder, parts)
        old = [p for parts in before for m in parts for p in m.parameters()]
        for parameter, value in zip(old, values, strict=True):
            parameter.data.copy_(value)
        raise
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags.get(name, True))


def _added(holders: dict[str, Holder], options: AdapterOptions) -> Parameters:
    """Adapters where there are none, drawn from the seed. Raises ModelError."""
    generator = torch.Generator().manual_seed(options.seed)
    trained: Parameters = {}
    for name, holder in holders.items():
        drawn = _drawn(holder, options, generator)
        if not (parts := beside(holder)):
            put_beside(holder, parts := drawn)
        _check_rank(name, holder, parts[0].out_features, drawn[0].out_features)
        for side, part in zip(("down", "up"), parts, strict=True):
            weight: Any = part.weight
            trained[f"{name}.{side}"] = weight.requires_grad_(True)
    return trained


def _check_rank(name: str, holder: Holder, rank: int, wanted: int) -> None:
    """Check an adapter's rank; a low-rank correction has one of its own."""
    if isinstance(holder, CompressedLinear) and rank != wanted:
        raise ModelError(
            f"{name} has an adapter of rank {rank} beside it, {wanted} is asked for; go on "
            f"with its own rank"
        )


def _drawn(
    holder: Holder, options: AdapterOptions, generator: torch.Generator
) -> tuple[nn.Linear, nn.Linear]:
    """`down` uniform within alpha / rank / sqrt(in), `up` zero, in float32."""
    made = Adapter(holder.in_features, holder.out_features, options.rank)
    alpha = options.alpha or 2 * options.rank
    scale = alpha / options.rank / holder.in_features**0.5
    values = 2 * torch.rand(made.down.weight.shape, generator=generator) - 1
    with torch.no_grad():
        made.down.weight.copy_(scale * values)
        made.up.weight.zero_()
    made.to(next(holder.buffers()).device)
    return made.down, made.up
