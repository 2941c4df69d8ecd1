"""Estimate the time of a compression on this machine from a few seconds of its own steps.

    calibrating        batches (a + b T)                      T tokens per batch
    along the path     share x (1 + p) of that                p products with wide weights
    decomposing        sum over layers  E (d / e)^3 + l       d the layer's smaller side
    measuring curves   f (tokens x passes + products of factors) + c calls
    refinements        f x 4 x tokens

a, b from the steps of two short batches, f from a forward pass over the longer one, c from one
of a token, and E from an eigendecomposition of size e, all timed here. `ProbeTokens` counts
passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.calibration.in_memory import (
    Rows,
    any_batches,
    begin,
    calibrate,
    rows_per_batch,
)
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.evaluation.speed.timing import time_once
from spectrim.linalg.psd import descending_eigh
from spectrim.models.hooks import evaluation_mode
from spectrim.models.targets import Target, find_targets
from spectrim.pipeline.calibration_defaults import calibration_settings
from spectrim.pipeline.inputs import calibration_rows, prepare
from spectrim.pipeline.plan import choose_tokens
from spectrim.pipeline.recipe import Recipe, RefinementRecipe
from spectrim.planning.measured import JOINT_BUDGETS, LAYER_BUDGETS
from spectrim.planning.predicted import NEEDED
from spectrim.planning.probe_tokens import PassCosts, first_tokens
from spectrim.refinement import REFINEMENTS
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import NO_CACHE

SHORTEST = 32
"""Tokens of the first timed batch; it is doubled until a step takes `LONG_ENOUGH` seconds."""
LONG_ENOUGH = 3.0
REPEATS, SHORT = 3, 1.0
"""Runs that are timed, while they take less than `SHORT` seconds in all."""
LARGEST_EIGH = 384
EIGHS_PER_LAYER = 1.5
"""Measured on layers of 192 to 1,536 channels: products are cheap beside the decompositions."""
LAYER_SECONDS = 2.5e-3
"""Of a layer's decomposition, whatever its size."""
CALLS_OF_A_BLOCK = 3.5
"""Measured: calls of a pass through one block, in blocks of a whole pass; what the model does
before its blocks and between stored ones is done each time."""
RANK_SHARE = 0.6
"""Of a layer's smaller side: the rank that it is measured at, about."""
_ONCE = ("calibrating", "averaging the Hessian", "decomposing", "measuring curves")
"""Stages whose results are used for several budgets."""
PASSES_PER_TRAINED_TOKEN = 4.0
"""The original forward, the compressed model forward, and backward at twice that."""


@dataclass(frozen=True)
class Stage:
    """A step of a run, under the name that its progress has, and its seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class MachineSpeed:
    """Seconds measured here.

    Attributes:
        batch: of a calibration's batch, whatever its size.
        token: of a token in it.
        forward: of a token in a forward pass.
        eigh: of an eigendecomposition in float64, by the cube of its size.
        call: of a forward pass, whatever its tokens.
    """

    batch: float
    token: float
    forward: float
    eigh: float
    call: float = 0.0


def estimate_stages(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe, cache: Cache | None = None
) -> list[Stage]:
    """Return the long stages of `compress`, in order, as if nothing were cached.

    Fused experts of the model are split in place. Raises what `calibrate` raises for the text.
    """
    work = _Work.of(model, tokenizer, recipe, cache)
    return work.stages(work.speed())


def estimate_rows(
    model: PreTrainedModel,
    tokenizer: Any,
    rows: Sequence[Recipe],
    evaluated_tokens: int,
    cache: Cache | None = None,
) -> list[Stage]:
    """Return the long stages of a table with a row per recipe and budget, summed by name.

    Rows that differ in the budget alone share their calibration and decomposition, and rows of
    other methods the calibration.
    """
    first = _Work.of(model, tokenizer, rows[0], cache)
    speed = first.speed()
    seconds: dict[str, float] = {}
    shared: set[str] = set()
    for recipe in rows:
        fixed = (recipe.method, str(recipe.method_options), recipe.averages_hessian)
        for stage in replace(first, recipe=recipe).stages(speed):
            key = stage.name if stage.name == "calibrating" else f"{stage.name} {fixed}"
            if stage.name in _ONCE and key in shared:
                continue
            shared.add(key)
            seconds[stage.name] = seconds.get(stage.name, 0.0) + stage.seconds
    evaluations = (1 + len(rows)) * evaluated_tokens
    return [Stage(*item) for item in seconds.items()] + [
        Stage("evaluating", evaluations * speed.forward)
    ]


def measure_speed(
    model: PreTrainedModel, targets: list[Target], blocks: Rows, recipe: Recipe
) -> MachineSpeed:
    """Time short batches of the calibration, a forward pass and an eigendecomposition."""
    steps = _timed_steps(model, targets, blocks, recipe)
    batch, token = _line(steps[-2:])
    part: Rows = first_tokens(blocks, steps[-1][0] if steps else SHORTEST)
    rows = next(iter(any_batches(part, len(part) * part.length, 0, model.device)))
    with evaluation_mode(model), torch.inference_mode():
        forward = _seconds(lambda: rows.forward(model), model.device)
        shortest = next(iter(any_batches(first_tokens(part, 1), 1, 0, model.device)))
        call = _seconds(lambda: shortest.forward(model), model.device)
    side = min(LARGEST_EIGH, max(min(target.shape) for target in targets))
    matrix = torch.randn(side, side, dtype=torch.float64, device=model.device)
    eigh = _seconds(lambda: descending_eigh(matrix @ matrix.T), model.device)
    return MachineSpeed(batch, token, forward / part.tokens, eigh / side**3, call)


def _timed_steps(
    model: PreTrainedModel, targets: list[Target], blocks: Rows, recipe: Recipe
) -> list[tuple[int, float]]:
    """Return tokens and seconds of longer and longer batches; none without statistics."""
    if not _calibrates(recipe):
        return []
    settings = calibration_settings(model, targets, blocks, recipe)
    longest = min(blocks.length, max(SHORTEST, settings.tokens_per_batch))

    def step(tokens: int) -> float:
        first = first_tokens(blocks, tokens)
        sums = begin(model, targets, first, settings)

        def run() -> None:
            sums.provenance["sequences_done"] = 0
            calibrate(model, targets, first, settings, sums)

        return _seconds(run, model.device)

    count = min(SHORTEST, longest)
    step(count)  # what is loaded and chosen on first use
    steps = [(count, step(count))]
    while count < longest and (len(steps) < 2 or steps[-1][1] < LONG_ENOUGH):
        count = min(2 * count, longest)
        steps.append((count, step(count)))
    return steps


@dataclass(frozen=True)
class _Work:
    model: PreTrainedModel
    targets: Sequence[Target]
    blocks: Rows
    recipe: Recipe

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: Any, recipe: Recipe, cache: Cache | None
    ) -> _Work:
        cache = cache or NO_CACHE
        targets = prepare(model, recipe, cache).targets
        blocks = calibration_rows(model, tokenizer, recipe, cache=cache)
        return cls(model, targets, blocks, recipe)

    def speed(self) -> MachineSpeed:
        return measure_speed(self.model, list(self.targets), self.blocks, self.recipe)

    def stages(self, speed: MachineSpeed) -> list[Stage]:
        pass_seconds = self._pass(speed) / distributed.num_processes()
        solved = self._decompositions(speed) / distributed.num_processes()
        found = [Stage("calibrating", pass_seconds), Stage("decomposing", solved)]
        averaging = self.recipe.hessian_averaging
        if self.recipe.averages_hessian:
            again = averaging.data_fraction * (1 + self._products()) * pass_seconds
            found[1] = replace(found[1], seconds=2 * solved)
            found.insert(1, Stage("averaging the Hessian", again))
        if not _calibrates(self.recipe):
            del found[0]
        if self._probes():
            seconds = self._probe_passes() * speed.forward + self._probe_calls() * speed.call
            found.append(Stage("measuring curves", seconds))
        for step in self.recipe.refinement:
            found.append(Stage(step.name, self._trained(step) * speed.forward))
        return found

    def _pass(self, speed: MachineSpeed) -> float:
        settings = calibration_settings(self.model, self.targets, self.blocks, self.recipe)
        rows = rows_per_batch(self.blocks, settings.tokens_per_batch)
        batches = -(-len(self.blocks) // rows)
        return batches * speed.batch + self.blocks.tokens * speed.token

    def _decompositions(self, speed: MachineSpeed) -> float:
        cubes = sum(min(target.shape) ** 3 for target in self.targets)
        overhead = LAYER_SECONDS * len(self.targets) if speed.eigh else 0.0
        return EIGHS_PER_LAYER * speed.eigh * cubes + overhead

    def _probes(self) -> bool:
        wanted = self.recipe.probe
        measured = self.recipe.pruning is None and set(NEEDED) <= set(self.recipe.statistics)
        return measured and (wanted.per_layer or wanted.joint)

    def _measurements(self) -> dict[tuple[str, ...], int]:
        return {(target.name,): len(LAYER_BUDGETS) for target in self.targets}

    def _probe_calls(self) -> float:
        """Return forward passes by number: those through blocks are made for each row."""
        costs, measurements = PassCosts.of(self.model), self._measurements()
        tokens = choose_tokens(self.model, self.recipe, self.blocks.tokens, measurements)
        calls = costs.passes(measurements, tokens.through)
        if tokens.through == "block":
            rows = min(len(self.blocks), -(-tokens.layers // self.blocks.length))
            share = CALLS_OF_A_BLOCK / max(1, len(costs.blocks))
            calls = rows * (2 + share * len(self.targets))
        wanted = self.recipe.probe
        return calls * wanted.per_layer + (1 + len(JOINT_BUDGETS)) * wanted.joint

    def _probe_passes(self) -> float:
        """Return forward passes of one token, as many as `ProbeTokens` allows."""
        wanted, measurements = self.recipe.probe, self._measurements()
        tokens = choose_tokens(self.model, self.recipe, self.blocks.tokens, measurements)
        each = PassCosts.of(self.model).passes(measurements, tokens.through)
        ranks = len(LAYER_BUDGETS) if tokens.through == "model" else 1
        layers = tokens.layers * each + ranks * self._weights_of_factors()
        plans = len(JOINT_BUDGETS)
        joint = (1 + plans) * tokens.joint + plans * self._weights_of_factors()
        return layers * wanted.per_layer + joint * wanted.joint

    def _weights_of_factors(self) -> float:
        """Return the passes of a token that the products of all layers' factors cost."""
        products = sum(RANK_SHARE * min(t.shape) * t.weights for t in self.targets)
        return products / self._all_weights()

    def _products(self) -> float:
        """Return what products with the weights that a cut model does not hold add to a pass.

        A pass is four operations for each weight, a product with a wide layer's weight two.
        """
        settings = calibration_settings(self.model, self.targets, self.blocks, self.recipe)
        formats = settings.formats({target.name: target.shape for target in self.targets})
        weights = {target.name: target.weights for target in self.targets}
        return sum(2 * weights[layer] for _, layer in formats) / (4 * self._all_weights())

    def _all_weights(self) -> float:
        """Return the weights that a token of a pass is multiplied with."""
        inside = sum(PassCosts.of(self.model).blocks.values())
        return sum(target.weights for target in find_targets(self.model)) / (inside or 1.0)

    def _trained(self, step: RefinementRecipe) -> float:
        options = REFINEMENTS.options(step.name, step.options)
        read = step.tokens or (step.sequences or len(self.blocks)) * self.blocks.length
        tokens = getattr(options, "tokens", None) or read * getattr(options, "epochs", 1)
        return PASSES_PER_TRAINED_TOKEN * tokens


def _calibrates(recipe: Recipe) -> bool:
    """Return whether the recipe sums statistics: pruning of plain singular vectors does not."""
    return recipe.pruning is None or bool(DECOMPOSITIONS.get(recipe.method).REQUIRES)


def _line(steps: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return seconds of a batch and of a token from up to two (tokens, seconds)."""
    if not steps:
        return 0.0, 0.0
    count, seconds = steps[-1]
    if len(steps) == 1 or (least := steps[0])[1] >= seconds:
        return 0.0, seconds / count
    token = (seconds - least[1]) / (count - least[0])
    return max(0.0, seconds - token * count), min(token, seconds / count)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return the least seconds of a few runs: other programs make some of them slower."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < REPEATS and sum(seconds) < SHORT):
        seconds.append(time_once(run, device))
    return min(seconds)
