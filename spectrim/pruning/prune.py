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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from spectrim.pruning.importance import IMPORTANCE, Importance
from spectrim.pruning.objective import Objective
from spectrim.pruning.options import PruningOptions, kept_after
from spectrim.pruning.selection_rules import LayerCost, select, stored_weights
from spectrim.pruning.spectral import SpectralLinear
from spectrim.pruning.state import PruneStep, PruningState, parameters_of
from spectrim.runtime.cache import load_if_valid, store
from spectrim.runtime.context import RunContext
from spectrim.runtime.snapshots import Snapshots
from spectrim.training.loop import Moments, Stage, Trainer, train
from spectrim.training.schedule import Schedule

_BY_BASIS = {"coordinates": 0, "left": 1, "right": 0}
"""The dimension of a parameter that counts the bases."""


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
    problem: Problem, options: PruningOptions, key: dict[str, Any], context: RunContext
) -> PruningState:
    """Prune and tune the layers in place; resume a run under `key` that was interrupted.

    Raises NumericalError for a loss that is not finite, InputError for a budget that one
    basis per layer does not fit.
    """
    for number, layer in enumerate(problem.layers.values()):
        layer.add_bases(options.extra_rank_for(layer.shape), options.seed * 1_000_003 + number)
        if options.trainable == "factors":
            layer.unfreeze()
    entry, layers = context.cache.path("selection", key), problem.layers
    if (state := load_if_valid(entry, partial(PruningState.load, layers=layers))) is None:
        state = _Run(problem, options, Snapshots(entry, shared=True), context).finish()
        store(entry, partial(state.save, layers=layers))
    Snapshots(entry, shared=True).finish()
    return state


class _Run:
    def __init__(
        self,
        problem: Problem,
        options: PruningOptions,
        snapshots: Snapshots,
        context: RunContext,
    ):
        self.problem = problem
        self.options = options
        self.context = context
        self.snapshots = snapshots
        saved = snapshots.load("state", partial(PruningState.load, layers=problem.layers))
        self.state = saved or PruningState.start(problem.layers)

    def finish(self) -> PruningState:
        due = self.options.prune_at
        while len(self.state.prune_steps) < len(due):
            self._tune(due[len(self.state.prune_steps)])
            self._prune()
        self._tune(self.options.steps)
        self.state.moments = {}
        return self.state

    def _tune(self, until: int) -> None:
        """Take steps up to number `until`."""
        if self.state.step >= until:
            return
        trainer = _trainer(self.problem, self.options, self.state.moments)
        for _ in train(trainer, self.state.losses, until, self._describe(), self.context):
            if self.snapshots.due():
                self.state.moments = trainer.moments()
                self._save()
        self.state.moments = trainer.moments()

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
        self.context.log_metrics(pruned, self.state.step)
        self._save()

    def _importance(self) -> Importance:
        options = IMPORTANCE.options(self.options.importance, self.options.importance_options)
        module = IMPORTANCE.get(self.options.importance)
        return module.estimate(
            self.problem.model, self.problem.layers, self.problem.scoring, options
        )

    def _keep(self, chosen: dict[str, Tensor]) -> dict[str, int]:
        """Remove the other bases from layers, state and moments; return how many, by layer."""
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
        self.snapshots.save("state", partial(self.state.save, layers=self.problem.layers))


def _sum_removed(importance: Importance, chosen: dict[str, Tensor]) -> float | None:
    """Return the summed score of what goes, in nats per token; None for other units."""
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


def _trainer(problem: Problem, options: PruningOptions, moments: Moments) -> Trainer:
    """Return the trainer of coordinates and new bases, each with a rate of its own."""
    parameters = {name: p for name, p in parameters_of(problem.layers).items() if p.numel()}
    by_kind = {
        "coordinates": options.learning_rate,
        "left": options.factor_lr,
        "right": options.factor_lr,
    }
    rates = {
        name: by_kind.get(name.rpartition(".")[2], options.extra_rank_lr) for name in parameters
    }
    training = problem.training

    def loss(rows: Tensor) -> Tensor:
        summed, tokens = training.loss(problem.model, training.rows.batch(rows))
        return summed / max(1, int(tokens))

    stage = Stage("selecting", parameters, loss, len(training.rows), rates=rates)
    schedule = Schedule.of(options, options.steps, options.batch_size)
    return Trainer(stage, replace(schedule, learning_rate=1.0), moments)
