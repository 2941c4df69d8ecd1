"""Inputs and shared steps of all ways to train from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.data.tasks import TaskRows
from spectrim.errors import ModelError
from spectrim.models.linear import is_linear
from spectrim.models.targets import find_targets
from spectrim.optim import option_names, split_params
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import Parameters
from spectrim.training.forward import Precision
from spectrim.training.loop import Stage
from spectrim.training.losses import next_token_loss
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import Schedule

NAME = "training"
"""Of the one stage."""


@dataclass
class Outcome:
    """losses: of every step; state_bytes: of the optimizer, 0 if no step was taken here."""

    losses: list[float] = field(default_factory=list)
    state_bytes: int = 0


@dataclass(frozen=True)
class Job:
    """A model to train, in float32, with its text and settings.

    Attributes:
        schedule: its learning rate is that of the matrices of hidden layers.
        rest_rate: the rate of embeddings, output layer and norms, relative to it.
        key: all that the result depends on.
        outcome: what is known once it is trained.
    """

    model: PreTrainedModel
    rows: TaskRows
    schedule: Schedule
    key: dict[str, Any]
    context: RunContext
    precision: Precision = "float32"
    optimizer: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)
    rest_rate: float = 1.0
    outcome: Outcome = field(default_factory=Outcome)

    def loss(self, rows: Tensor) -> Tensor:
        return next_token_loss(self.model, self.rows, self.precision, rows)

    def start(self) -> TrainingRun:
        """Return the run over all parameters of the model as it is now."""
        return TrainingRun(dict(self.model.named_parameters()), self.key, self.context)

    def train(self) -> None:
        """Train all parameters in one stage."""
        run = self.start()
        run.complete([self.stage()], self.schedule)
        self.finish(run)

    def finish(self, run: TrainingRun) -> None:
        """Take over the outcome of a finished run."""
        self.outcome.losses = run.state.losses[NAME]
        self.outcome.state_bytes = run.state_bytes

    def stage(
        self, loss: Callable[[Tensor], Tensor] | None = None, inside: Iterable[str] = ()
    ) -> Stage:
        """Return the stage of all parameters that need gradients.

        inside: names of layers all of whose parameters have the rate of matrices.
        """
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        rest = self._rest(named, tuple(name + "." for name in inside))
        options = dict(self.options)
        if "adamw_ratio" in option_names(self.optimizer):
            options.setdefault("adamw_ratio", 1.0)
        rates = dict.fromkeys(rest, self.rest_rate)
        return Stage(
            NAME,
            named,
            loss or self.loss,
            len(self.rows),
            rates=rates,
            optimizer=self.optimizer,
            options=options,
            rest=frozenset(rest),
        )

    def _rest(self, named: Parameters, inside: tuple[str, ...]) -> list[str]:
        groups = split_params(self.model)
        rest = {id(p) for group in groups if not group["matrix"] for p in group["params"]}
        return [n for n, p in named.items() if id(p) in rest and not n.startswith(inside)]

    def layers(self) -> Iterator[tuple[str, nn.Linear]]:
        """Yield the linear layers of the blocks. Raises ModelError for other modules."""
        for target in find_targets(self.model):
            module = self.model.get_submodule(target.name)
            if not (is_linear(module) and isinstance(module, nn.Linear)):
                raise ModelError(
                    f"{target.name} is a {type(module).__name__}; training from scratch in "
                    "another form needs nn.Linear layers, as Llama has; use --method full"
                )
            yield target.name, module


def rank_for(layer: nn.Linear, fraction: float) -> int:
    """Return the rank for a share of the shorter side, at least 1."""
    shorter = min(layer.in_features, layer.out_features)
    return max(1, min(shorter, round(fraction * shorter)))


def dense_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a plain layer of the given tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def uniform(shape: tuple[int, int], bound: float, generator: torch.Generator) -> Tensor:
    """Return float64 numbers from [-bound, bound)."""
    return bound * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
