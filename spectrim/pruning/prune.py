"""Pruning of bases interleaved with tuning of what is left.

    kept_j = kept_0 (budget / kept_0)^(j / events)     after pruning j, scored anew each time
    c, p, q  <-  AdamW on the task's loss              between the prunings and after the last
    l, r     <-  the same, where the options say so

kept_0 is what the layers cost as factors of full rank, of plain factors up to twice their
dense weights.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import CheckpointError, NumericalError
from spectrim.pruning.importance import IMPORTANCE, Importance
from spectrim.pruning.objective import Objective
from spectrim.pruning.options import PruningOptions, kept_after
from spectrim.pruning.selection_rules import LayerCost, select, stored_weights
from spectrim.pruning.spectral import SpectralLinear
from spectrim.pruning.state import PruneStep, PruningState, parameters_of
from spectrim.runtime.cache import exists
from spectrim.training.loop import Schedule
from spectrim.training.progress import RunContext

_BETAS = (0.9, 0.95)
_BY_BASIS = {"coordinates": 0, "left": 1, "right": 0}
"""Which dimension of a parameter counts the bases."""


@dataclass(frozen=True)
class Problem:
    """A model whose `layers` are spectral; what trains and scores them, what they cost."""

    model: nn.Module
    layers: dict[str, SpectralLinear]
    training: Objective
    scoring: Objective
    costs: dict[str, LayerCost]
    budget: float

    @property
    def dense_weights(self) -> int:
        return sum(cost.dense for cost in self.costs.values())

    def kept(self) -> float:
        counts = {name: layer.bases for name, layer in self.layers.items()}
        return stored_weights(counts, self.costs) / self.dense_weights


def run_pruning(
    problem: Problem, options: PruningOptions, progress: RunContext, key: dict[str, Any]
) -> PruningState:
    """Prunes and tunes the layers in place; continues what the workspace has under `key`.

    Raises NumericalError for a loss that is not finite, InputError for a budget that one
    basis per layer does not fit.
    """
    for number, layer in enumerate(problem.layers.values()):
        layer.add_bases(options.extra_rank_for(layer.shape), options.seed * 1_000_003 + number)
        if options.trainable == "factors":
            layer.unfreeze()
    return _Run(problem, options, progress, progress.cache.path("selection", key)).finished()


class _Run:
    def __init__(
        self,
        problem: Problem,
        options: PruningOptions,
        progress: RunContext,
        path: Path | None,
    ):
        self.problem = problem
        self.options = options
        self.progress = progress
        self.path = path
        self.state = self._taken_up() or PruningState.start(problem.layers)
        self._saved = time.monotonic()

    def finished(self) -> PruningState:
        due = self.options.prune_at
        while len(self.state.prune_steps) < len(due):
            self._tune(due[len(self.state.prune_steps)])
            self._prune()
        self._tune(self.options.steps)
        self.state.moments = {}
        self._save()
        return self.state

    def _taken_up(self) -> PruningState | None:
        if self.path is None or not exists(self.path):
            return None
        try:
            return PruningState.load(self.path, self.problem.layers)
        except CheckpointError as error:
            warnings.warn(f"starting the selection again: {error}", stacklevel=5)
            return None

    def _tune(self, until: int) -> None:
        """Steps up to number `until`."""
        if self.state.step >= until:
            return
        tuner = _Tuner(self.problem, self.options, self.state.moments)
        steps = range(self.state.step, until)
        for step in self.progress.progress(steps, self._describe(), len(steps)):
            self.state.losses.append(tuner.step(step))
            self.state.step = step + 1
            self.progress.log_metrics({"loss/selecting": self.state.losses[-1]}, step + 1)
            self._save_now_and_then(tuner)
        self.state.moments = tuner.moments()

    def _describe(self) -> str:
        recent = self.state.losses[-10:]
        loss = f", loss {sum(recent) / len(recent):.4f}" if recent else ""
        done = f"{len(self.state.prune_steps)}/{self.options.prune_steps}"
        return f"selecting {done}, kept {self.problem.kept():.3f}{loss}"

    def _prune(self) -> None:
        start = time.monotonic()
        problem, number = self.problem, len(self.state.prune_steps) + 1
        before = problem.kept()
        first = self.state.prune_steps[0].kept_before if self.state.prune_steps else before
        wanted = kept_after(number, self.options.prune_steps, first, min(first, problem.budget))
        importance = self._importance()
        weights = int(wanted * problem.dense_weights + 1e-9)
        chosen = select(
            importance.order(self.options.gradient_term),
            problem.costs,
            weights,
            self.options.rule,
        )
        loss_before = problem.scoring.value(problem.model)
        removed = self._keep(chosen)
        loss = problem.scoring.value(problem.model)
        self.state.prune_steps.append(
            PruneStep(
                number=number,
                step=self.state.step,
                kept_before=before,
                kept_after=problem.kept(),
                bases=sum(layer.bases for layer in problem.layers.values()),
                removed=removed,
                predicted=_sum_removed(importance, chosen),
                measured=loss - loss_before,
                loss=loss,
                standard_error=_error_removed(importance, chosen),
                passes=importance.passes,
                seconds=time.monotonic() - start,
            )
        )
        pruned = {"selecting/kept": problem.kept(), "selecting/loss after pruning": loss}
        self.progress.log_metrics(pruned, self.state.step)
        self._save()

    def _importance(self) -> Importance:
        options = IMPORTANCE.options(self.options.importance, self.options.importance_options)
        module = IMPORTANCE.get(self.options.importance)
        return module.estimate(
            self.problem.model, self.problem.layers, self.problem.scoring, options
        )

    def _keep(self, chosen: dict[str, Tensor]) -> dict[str, int]:
        """Removes the others from layers, state and moments; how many went, by layer."""
        removed = {}
        for name, layer in self.problem.layers.items():
            gone = layer.bases - len(chosen[name])
            if not gone:
                continue
            removed[name] = gone
            layer.prune(chosen[name])
            self.state.chosen[name] = self.state.chosen[name][chosen[name]]
            for parameter, dimension in _BY_BASIS.items():
                moments = self.state.moments.get(f"{name}.{parameter}", {})
                for entry, tensor in moments.items():
                    if tensor.dim():
                        moments[entry] = tensor.index_select(dimension, chosen[name])
        return removed

    def _save(self) -> None:
        if self.path is not None:
            self.state.save(self.path, self.problem.layers)
            self._saved = time.monotonic()

    def _save_now_and_then(self, tuner: _Tuner) -> None:
        waited = time.monotonic() - self._saved
        if self.path is not None and waited >= self.progress.seconds_between_saves:
            self.state.moments = tuner.moments()
            self._save()


def _sum_removed(importance: Importance, chosen: dict[str, Tensor]) -> float | None:
    """Summed score of what goes, in nats per token; None for scores in other units."""
    if importance.units != "nats per token":
        return None
    return sum(
        float(scores.sum() - scores[chosen[name]].sum())
        for name, scores in importance.scores.items()
    )


def _error_removed(importance: Importance, chosen: dict[str, Tensor]) -> float | None:
    if importance.errors is None:
        return None
    squares = sum(
        float(errors.square().sum() - errors[chosen[name]].square().sum())
        for name, errors in importance.errors.items()
    )
    return math.sqrt(max(0.0, squares)) if math.isfinite(squares) else None


class _Tuner:
    """AdamW on coordinates and new bases; the rate of a step depends on its number alone."""

    def __init__(
        self, problem: Problem, options: PruningOptions, moments: dict[str, dict[str, Tensor]]
    ):
        self.problem = problem
        self.parameters = {
            name: p for name, p in parameters_of(problem.layers).items() if p.numel()
        }
        self.schedule = Schedule(
            options.steps,
            options.batch_size,
            1.0,
            int(options.warmup_ratio * options.steps),
            options.seed,
            options.max_grad_norm,
        )
        rates = {
            "coordinates": options.learning_rate,
            "left": options.factor_lr,
            "right": options.factor_lr,
        }
        groups = [
            {"params": [p], "rate": rates.get(name.rpartition(".")[2], options.extra_rank_lr)}
            for name, p in self.parameters.items()
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=_BETAS, weight_decay=0.0)
        for name, entries in moments.items():
            self.optimizer.state[self.parameters[name]] = dict(entries)

    def step(self, number: int) -> float:
        training = self.problem.training
        batch = training.rows.batch(self.schedule.chosen(number, len(training.rows)))
        summed, tokens = training.loss(self.problem.model, batch)
        loss = summed / max(1, int(tokens))
        value = float(loss.detach())
        parameters = list(self.parameters.values())
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(parameters, self.schedule.max_grad_norm)
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise NumericalError(
                f"the task's loss is {value} and its gradient's norm {float(norm)} at step "
                f"{number + 1}; check the model for NaN, or set a smaller learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * self.schedule.rate(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def moments(self) -> dict[str, dict[str, Tensor]]:
        return {
            name: dict(self.optimizer.state[parameter])
            for name, parameter in self.parameters.items()
            if parameter in self.optimizer.state
        }
