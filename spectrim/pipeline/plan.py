"""calibrate, decompose and measure as one kept value, and plans cut from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from spectrim.allocation import LatencyTable
from spectrim.pipeline.calibrate import calibrate, calibration_blocks
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.latency_table import latency_table
from spectrim.pipeline.pieces import ResumableProbe, Snapshots
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition, Plan, make_plan
from spectrim.planning.measured import probe_jointly, probe_layers
from spectrim.planning.probe import Probe
from spectrim.planning.quantization_error import with_rounding
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache, load_if_valid
from spectrim.runtime.context import ProgressBar, silent
from spectrim.statistics import Calibration


def probe_curves(
    model: PreTrainedModel,
    tokenizer: Any,
    decomposition: Decomposition,
    recipe: Recipe | None = None,
    track: ProgressBar = silent,
) -> Decomposition:
    """The decomposition with curves corrected by forward passes, as the recipe asks."""
    recipe = recipe or Recipe()
    measuring = _Measuring(model, tokenizer, recipe, track, Snapshots(None))
    return measuring.corrected(decomposition)


@dataclass(frozen=True)
class _Measuring:
    model: PreTrainedModel
    tokenizer: Any
    recipe: Recipe
    track: ProgressBar
    pieces: Snapshots

    def corrected(self, decomposition: Decomposition) -> Decomposition:
        wanted = self.recipe.probe
        if decomposition.units == "own" or not (wanted.per_layer or wanted.joint):
            return decomposition
        blocks = calibration_blocks(self.model, self.tokenizer, self.recipe)
        if wanted.per_layer:
            probe = ResumableProbe(Probe(self.model, blocks, wanted.tokens), self.pieces)
            track = lambda names: self.track(names, "measuring curves", len(names))  # noqa: E731
            decomposition = probe_layers(decomposition, probe, self.recipe, track)
        if wanted.joint:
            probe = ResumableProbe(Probe(self.model, blocks, wanted.joint_tokens), self.pieces)
            decomposition = probe_jointly(decomposition, probe, self.recipe)
        return decomposition


def factorize(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe | None = None,
    cache: Cache | None = None,
    track: ProgressBar = silent,
) -> Decomposition:
    """calibrate, decompose and measure in one, kept in the workspace as one entry.

    A run that was stopped goes on from what it had stored, some seconds before, of the step
    that it was in.
    """
    recipe = recipe or Recipe()
    calibration = calibrate(model, tokenizer, recipe, cache, track)
    key = {
        "calibration": calibration.provenance["key"],
        "path": asdict(recipe.hessian_averaging) if recipe.averages_hessian else None,
        "method": [recipe.method, recipe.method_options],
        "measure": asdict(recipe.probe),
        **recipe.sharing_key,
    }
    path = (cache or Cache(None)).path("decomposition", key)
    pieces = Snapshots(path)
    if (earlier := load_if_valid(path, Decomposition.load)) is not None:
        pieces.remove()  # of a run that was killed when only this was left to do
        return price_rounding(calibration, earlier, recipe, track)
    result = decompose(model, calibration, recipe, track, pieces)
    result = _Measuring(model, tokenizer, recipe, track, pieces).corrected(result)
    with distributed.raise_together():
        if path is not None and distributed.is_main_process():
            result.save(path)
    pieces.remove()
    return price_rounding(calibration, result, recipe, track)


def price_rounding(
    calibration: Calibration,
    decomposition: Decomposition,
    recipe: Recipe,
    track: ProgressBar = silent,
) -> Decomposition:
    """The decomposition, which for a recipe of fewer bits knows what rounding adds."""
    total = len(decomposition.shapes)
    return with_rounding(
        calibration,
        decomposition,
        recipe,
        lambda names: track(names, "rounding", total),
    )


def plan(
    decomposition: Decomposition,
    recipe: Recipe | None = None,
    times: LatencyTable | None = None,
) -> Plan:
    """The recipe's allocation at the recipe's budget; times: `latency_table`'s, measured now
    where the recipe's budget is one of time and none are given. Raises InputError when it
    misfits."""
    recipe = recipe or Recipe()
    if recipe.latency is not None and times is None:
        times = latency_table(decomposition, recipe)
    return make_plan(decomposition, recipe, times)
