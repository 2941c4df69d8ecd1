"""The one loop from layers to factors with predicted curves, for layers from any source.

A layer of a model in memory, one of a part that is read from a checkpoint, the residual of a
quantized weight and several layers that are to share a basis are all `LayerProblem`s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.decompositions import decompose_group, decompose_layer
from spectrim.linalg.truncated import Factors
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.source import ModelSource
from spectrim.planning.decomposition import Decomposition
from spectrim.planning.predicted import NEEDED, first_order_effects, predicted_curve
from spectrim.planning.snapshots import LayerSnapshots
from spectrim.runtime.snapshots import Snapshots
from spectrim.statistics import (
    Calibration,
    LayerProblem,
    LayerStatistics,
    PooledStatistics,
    with_shrinkage,
)

Problems = tuple[LayerProblem, ...]
"""One layer, or several that may share a basis."""


@dataclass(frozen=True)
class Solver:
    """Decompose layers by the method of `empty`.

    Attributes:
        empty: a decomposition without layers, with its method, units and provenance.
        options: of the method.
        price: predicted loss of a decomposition; layers share a basis if that is cheaper,
            or, with None, wherever they may.
    """

    empty: Decomposition
    options: Any
    price: Callable[[Decomposition], float] | None = None

    def solve(self, problems: Problems) -> Decomposition:
        """Return the layers as a group on one basis, or each alone.

        Raises NumericalError for weights or statistics that cannot be factorized, InputError
        for a method whose layers cannot share a basis.
        """
        if len(problems) == 1:
            return self._alone(*problems)
        shared = self._shared(problems)
        if self.price is None:
            return shared
        apart = self.empty.select(())
        for problem in problems:
            apart.update(self._alone(problem))
        return shared if self.price(shared) < self.price(apart) else apart

    def _alone(self, problem: LayerProblem) -> Decomposition:
        factors = decompose_layer(self.empty.method, problem, self.options)
        curve = predicted_curve(factors, problem.statistics)
        effects = _effects({problem.name: factors}, [problem])
        return self._entry(problem.name, factors, curve, effects)

    def _shared(self, problems: Problems) -> Decomposition:
        factors = decompose_group(self.empty.method, pool_inputs(problems), self.options)
        members = {problem.name: len(problem.weight) for problem in problems}
        parts = factors.split(members)
        if _has(problems[0].statistics, *NEEDED):
            curves = [predicted_curve(parts[p.name], p.statistics) for p in problems]
        else:
            curves = [predicted_curve(factors, None)]
        curve, effects = torch.stack(curves).sum(0), _effects(parts, problems)
        entry = self._entry("+".join(members), factors, curve, effects)
        groups = dict.fromkeys(entry.shapes, members)
        if len(curves) < len(members):
            return replace(entry, groups=groups)
        shares = (torch.stack(curves) / curve).nan_to_num(1 / len(curves))
        return replace(entry, groups=groups, shares=dict.fromkeys(entry.shapes, shares))

    def _entry(
        self, name: str, factors: Factors, curve: Tensor, effects: Tensor | None
    ) -> Decomposition:
        return replace(
            self.empty,
            shapes={name: (factors.left.shape[0], factors.right.shape[1])},
            factors={name: factors},
            curves={name: curve},
            first_order_effects={} if effects is None else {name: effects},
            groups={},
        )


def decompose_problems(
    problems: Iterable[Problems], solver: Solver, snapshots: Snapshots | None = None
) -> Decomposition:
    """Decompose all problems in order; those in `snapshots` are not solved again."""
    stored = LayerSnapshots(snapshots or Snapshots(None))
    result = solver.empty.select(())
    earlier = stored.load() or solver.empty
    for group in problems:
        if entries := entry_names(earlier, [problem.name for problem in group]):
            result.update(earlier.select(entries))
            continue
        result.update(solver.solve(group))
        stored.save_if_due(result)
    return result


def entry_names(decomposition: Decomposition, layers: Sequence[str]) -> tuple[str, ...]:
    """Return the names under which a decomposition holds all of `layers`.

    That is a group or each layer alone; none if it does not hold them.
    """
    choices = (("+".join(layers),), tuple(layers))
    return next((names for names in choices if set(names) <= set(decomposition.shapes)), ())


def layer_problem(model: nn.Module, calibration: Calibration | None, name: str) -> LayerProblem:
    """Return the layer `name` with its statistics, if there are any."""
    layer = model.get_submodule(name)
    weight = get_weight(layer).detach()
    statistics = None if calibration is None else with_shrinkage(calibration.layer(name))
    return LayerProblem(name, weight, get_bias(layer), statistics)


def layer_problems(
    source: ModelSource, calibration: Calibration | None, groups: Iterable[tuple[str, ...]]
) -> Iterator[Problems]:
    """Yield the layers of each group while the part that holds them is resident."""
    by_part: dict[str, list[tuple[str, ...]]] = {}
    for group in groups:
        by_part.setdefault(source.part_of(group[0]), []).append(group)
    for part, inside in by_part.items():
        with source.resident(part):
            for group in inside:
                yield tuple(layer_problem(source.model, calibration, name) for name in group)


def pool_inputs(problems: Sequence[LayerProblem]) -> list[LayerProblem]:
    """Return each problem with the inputs of all of them."""
    names = tuple(problem.name for problem in problems)
    pooled = []
    for problem in problems:
        assert problem.statistics is not None, "layers share the inputs of a calibration"
        calibration = problem.statistics.calibration
        statistics = with_shrinkage(PooledStatistics(calibration, problem.name, names))
        pooled.append(replace(problem, statistics=statistics))
    return pooled


def _effects(parts: Mapping[str, Factors], problems: Sequence[LayerProblem]) -> Tensor | None:
    """Return the first-order effects, of a group the sum over its members."""
    effects = [
        first_order_effects(parts[problem.name], problem.statistics)
        for problem in problems
        if problem.statistics is not None and _has(problem.statistics, "mean_gradient")
    ]
    return torch.stack(effects).sum(0) if effects else None


def _has(statistics: LayerStatistics | None, *names: str) -> bool:
    return statistics is not None and all(name in statistics for name in names)
