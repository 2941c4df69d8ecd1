"""Calibrate, decompose and measure with one cache entry, and cut plans from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from spectrim.allocation import LatencyTable
from spectrim.calibration.in_memory import Rows
from spectrim.models.kind import CAUSAL, kind_of
from spectrim.models.offload import StreamedModel
from spectrim.models.source import ModelSource, open_source
from spectrim.pipeline.blockwise import factorize_streamed
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.experts import check_experts, price_experts
from spectrim.pipeline.inputs import calibration_rows
from spectrim.pipeline.latency_table import latency_table
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition, Plan, make_plan
from spectrim.planning.block_probe import BlockProbe
from spectrim.planning.measured import (
    JOINT_BUDGETS,
    LAYER_BUDGETS,
    block_budgets,
    measured_modules,
    probe_experts,
    probe_jointly,
    probe_layers,
)
from spectrim.planning.planner import DEFAULT_BUDGETS, SizeCurve
from spectrim.planning.planner import size_curve as curve_of
from spectrim.planning.probe import Probe, has_divergence
from spectrim.planning.probe_tokens import (
    ENOUGH,
    PassCosts,
    ProbeTokens,
    first_tokens,
    held_probabilities,
)
from spectrim.planning.quantization_error import with_rounding
from spectrim.planning.snapshots import ResumableProbe
from spectrim.runtime.cache import load_if_valid, store
from spectrim.runtime.context import RunContext
from spectrim.runtime.memory import trim_memory
from spectrim.runtime.snapshots import Snapshots
from spectrim.runtime.warning_log import recorded_warnings, repeat_warnings
from spectrim.statistics import Calibration


def probe_curves(
    model: PreTrainedModel,
    tokenizer: Any,
    decomposition: Decomposition,
    recipe: Recipe | None = None,
    context: RunContext | None = None,
) -> Decomposition:
    """Return the decomposition with curves corrected by the recipe's forward passes."""
    recipe = recipe or Recipe()
    given = context or RunContext()
    return _Probing(model, tokenizer, recipe, Snapshots(None), given).corrected(decomposition)


def size_curve(
    decomposition: Decomposition,
    recipe: Recipe | None = None,
    budgets: Sequence[float] = DEFAULT_BUDGETS,
) -> SizeCurve:
    """Return the predicted loss at every budget that the layers can meet."""
    return curve_of(decomposition, (recipe or Recipe()).planning, budgets)


@dataclass(frozen=True)
class _Probing:
    model: PreTrainedModel
    tokenizer: Any
    recipe: Recipe
    snapshots: Snapshots
    context: RunContext

    def corrected(self, decomposition: Decomposition) -> Decomposition:
        wanted = self.recipe.probe
        if decomposition.units == "own" or not (wanted.per_layer or wanted.joint):
            return decomposition
        given = self.model, self.tokenizer, self.recipe
        blocks = calibration_rows(*given, cache=self.context.cache)
        if not has_divergence(blocks):
            return decomposition
        measurements = measured_modules(decomposition, self.recipe.planning)
        tokens = choose_tokens(self.model, self.recipe, blocks.tokens, measurements)
        if wanted.per_layer and self._is_enough(tokens):
            # what it stores is freed before full-model plans are measured
            decomposition = self._layer_by_layer(decomposition, blocks, tokens)
            trim_memory()
        if decomposition.experts:
            decomposition = self._experts(decomposition, blocks, tokens)
        if wanted.joint:
            probe = self._probe(Probe, blocks, tokens.joint, "joint")
            decomposition = probe_jointly(decomposition, probe, self.recipe.planning)
        return decomposition

    def _is_enough(self, tokens: ProbeTokens) -> bool:
        """Return whether layers are measured: of other kinds only on the whole model."""
        given = self.recipe.probe.tokens is not None
        return kind_of(self.model) is CAUSAL or given or tokens.layers >= ENOUGH

    def _layer_by_layer(
        self, decomposition: Decomposition, blocks: Rows, tokens: ProbeTokens
    ) -> Decomposition:
        kind = Probe if tokens.through == "model" else BlockProbe
        probe = self._probe(kind, blocks, tokens.layers, "per_layer")
        show = self.context.progress
        track = lambda names: show(names, "measuring curves", len(names))  # noqa: E731
        averages = self.recipe.averages_hessian
        budgets = LAYER_BUDGETS if kind is Probe else block_budgets(averages)
        return probe_layers(decomposition, probe, self.recipe.planning, track, budgets)

    def _experts(
        self, decomposition: Decomposition, blocks: Rows, tokens: ProbeTokens
    ) -> Decomposition:
        most = max(tokens.joint, tokens.layers)
        probe = self._probe(Probe, blocks, most, "experts")
        show = self.context.progress
        track = lambda names: show(names, "measuring experts", len(names))  # noqa: E731
        return probe_experts(decomposition, probe, track)

    def _probe(
        self, kind: type[Probe | BlockProbe], blocks: Rows, tokens: int, stage: str
    ) -> ResumableProbe:
        given: Any = first_tokens(blocks, tokens)
        probe = kind(self.model, given, tokens)
        return ResumableProbe(probe, self.snapshots, stage)


def choose_tokens(
    model: PreTrainedModel,
    recipe: Recipe,
    calibrated: int,
    measurements: Mapping[tuple[str, ...], int],
) -> ProbeTokens:
    """Return the recipe's tokens, else what its share of the calibration's cost allows.

    measurements: number of ranks by the modules that are cut together.
    """
    wanted = recipe.probe
    whole = wanted.tokens or kind_of(model) is not CAUSAL
    tokens = ProbeTokens.within(
        2 * wanted.cost_fraction * calibrated,
        PassCosts.of(model),
        measurements if wanted.per_layer else {},
        len(JOINT_BUDGETS) if wanted.joint else 0,
        "model" if whole and wanted.through == "auto" else wanted.through,
    ).at_most(held_probabilities(model))
    layers, joint = wanted.tokens or tokens.layers, wanted.joint_tokens or tokens.joint
    return replace(tokens, layers=layers, joint=joint)


def factorize(
    model: PreTrainedModel | ModelSource,
    tokenizer: Any,
    recipe: Recipe | None = None,
    context: RunContext | None = None,
) -> Decomposition:
    """Calibrate, decompose and probe, with the result in the cache.

    An interrupted run resumes from its last snapshot. The factors of a model that is not whole
    stay in files of the cache; its curves are not probed.
    """
    recipe = recipe or Recipe()
    context = context or RunContext()
    source = open_source(model)
    if isinstance(source, StreamedModel):
        return factorize_streamed(source, tokenizer, recipe, context)
    whole: PreTrainedModel = source.model
    if recipe.experts is not None:
        check_experts(whole, tokenizer, recipe, context)
    calibration = calibrate(whole, tokenizer, recipe, context)
    key = {
        "calibration": calibration.provenance["key"],
        "path": asdict(recipe.hessian_averaging) if recipe.averages_hessian else None,
        "method": [recipe.method, recipe.method_options],
        "measure": asdict(recipe.probe),
        **recipe.sharing_key,
        **({} if recipe.experts is None else {"experts": asdict(recipe.experts)}),
    }
    path = context.cache.path("decomposition", key)
    snapshots = Snapshots(path)
    if (earlier := load_if_valid(path, Decomposition.load)) is not None:
        snapshots.finish()  # of a run that was killed when only this was left to do
        known = calibration.provenance.get("warnings", [])
        repeat_warnings(w for w in earlier.provenance.get("warnings", []) if w not in known)
        return price_rounding(calibration, earlier, recipe, context)
    with recorded_warnings() as given:
        result = decompose(whole, calibration, recipe, snapshots, context)
        result = price_experts(whole, tokenizer, result, recipe, context)
        if recipe.quantization is None:  # nothing reads the sums again
            calibration = replace(calibration, states={})
        trim_memory()
        result = _Probing(whole, tokenizer, recipe, snapshots, context).corrected(result)
    if given:
        earlier_ones = calibration.provenance.get("warnings", [])
        result.provenance["warnings"] = [*earlier_ones, *given]
    store(path, result.save)
    snapshots.finish()
    return price_rounding(calibration, result, recipe, context)


def price_rounding(
    calibration: Calibration,
    decomposition: Decomposition,
    recipe: Recipe,
    context: RunContext | None = None,
) -> Decomposition:
    """Return the decomposition, for quantized factors with the loss of rounding."""
    total, progress = len(decomposition.shapes), (context or RunContext()).progress
    return with_rounding(
        calibration,
        decomposition,
        recipe.planning,
        lambda names: progress(names, "rounding", total),
    )


def plan(
    decomposition: Decomposition,
    recipe: Recipe | None = None,
    times: LatencyTable | None = None,
) -> Plan:
    """Return the recipe's allocation at its budget.

    times: from `latency_table`, measured now if missing for a latency budget. Raises InputError
    for a budget that cannot be met.
    """
    recipe = recipe or Recipe()
    if recipe.latency is not None and times is None:
        times = latency_table(decomposition, recipe)
    return make_plan(decomposition, recipe.planning, times)
