"""Low-rank updates of the factors on the next-token loss: first of `left`, then of `right`.

    min_{up, down}  E_t[-log q_t(next)],    left + (alpha / rank) up down,   right fixed,
    then                                    right + (alpha / rank) up down,  left fixed

SVD-LLM's sequential parameter update. Each stage is what adapters of LoRA on that one factor
of every layer compute (`down` drawn, `up` zero, no dropout, everything else fixed), merged
into the factor before the next stage. Ranks stay; every kind of layer is trained in the
balanced form and put back into its own.

Memory: the compressed model, a copy of what is in its blocks, the updates with AdamW's two
moments and a gradient, the activations of one step, and its tokens x vocabulary x 4 bytes
twice. The original is not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from spectrim.errors import InputError, ModelError
from spectrim.layers.lowrank import LowRankLinear
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import Parameters, balanced_parameters
from spectrim.training.forward import Precision
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import Schedule

REFERENCE = "Wang et al., 2024, arXiv:2403.07378; Hu et al., 2021, arXiv:2106.09685"
QUICK = {"epochs": 8, "learning_rate": 1e-2}
NEEDS_LOSSLESS = True
FACTORS = ("left", "right")
"""In the order in which they are updated."""


@dataclass(frozen=True)
class Options:
    """epochs: passes over the sequences for each of the two stages; rank of the updates, at
    most that of the factor; `warmup_ratio` is a share of the steps; precision is that of the
    matrix products ("float32" or "bfloat16")."""

    rank: int = 8
    alpha: float = 16.0
    epochs: int = 2
    batch_size: int = 4
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        numbers = self.rank, self.epochs, self.batch_size
        if min(numbers) < 1 or self.alpha <= 0 or self.learning_rate <= 0:
            raise InputError(
                "rank, epochs, batch_size, alpha and learning_rate have to be "
                f"positive, got {numbers}, {self.alpha} and {self.learning_rate}"
            )

    def schedule(self, sequences: int) -> Schedule:
        rows = min(self.batch_size, sequences)
        steps = self.epochs * (sequences // rows)
        return Schedule.of(self, steps, rows)


class LowRankUpdate(nn.Module):
    """`y = factor(x) + scale up(down(x))`; `up` starts at zero."""

    def __init__(self, factor: nn.Linear, options: Options, generator: torch.Generator):
        super().__init__()
        inputs, outputs = factor.in_features, factor.out_features
        rank = min(options.rank, inputs, outputs)
        device = factor.weight.device
        drawn = 2 * torch.rand(rank, inputs, generator=generator) - 1
        self.factor = factor
        self.down = nn.Parameter((drawn / inputs**0.5).to(device))
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.scale = options.alpha / options.rank

    def forward(self, x: Tensor) -> Tensor:
        update = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return self.factor(x) + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        self.factor.weight.add_(self.scale * (self.up @ self.down))
        return self.factor


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Train `inputs.compressed`. Raises NumericalError naming a step that is not finite."""
    key = inputs.key("svd_llm_lora", options)
    rows = task_rows(inputs.blocks)
    loss = partial(next_token_loss, inputs.compressed, rows, options.precision)
    with (
        balanced_parameters(inputs.compressed) as inside,
        add_updates(inputs.compressed, inside, options) as updates,
    ):
        parameters = {n: p for stage in updates.values() for n, p in stage.items()}
        stages = [Stage(factor, own, loss, len(rows)) for factor, own in updates.items()]
        run = TrainingRun(parameters, key, context)
        return run.complete(stages, options.schedule(len(rows)))


@contextmanager
def add_updates(
    model: nn.Module, inside: Parameters, options: Options
) -> Iterator[dict[str, Parameters]]:
    """Add updates to the factors among the parameters `inside`; yield them by factor and name.

    They are merged on leaving; the first stage's, fixed from then on, are part of their
    factor all the same while the second is trained. Raises ModelError when there are none.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear) and f"{name}.left.weight" in inside
    }
    if not layers:
        raise ModelError(f"{type(model).__name__} has no factored layer; compress it first")
    generator = torch.Generator().manual_seed(options.seed)
    stages: dict[str, Parameters] = {factor: {} for factor in FACTORS}
    for factor, found in stages.items():
        for name, layer in layers.items():
            update = LowRankUpdate(getattr(layer, factor), options, generator)
            setattr(layer, factor, update)
            found |= {f"{name}.{factor}.down": update.down, f"{name}.{factor}.up": update.up}
    try:
        yield stages
    finally:
        for layer in layers.values():
            for factor in FACTORS:
                setattr(layer, factor, getattr(layer, factor).merged())
