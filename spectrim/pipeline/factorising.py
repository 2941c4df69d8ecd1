"""calibrate, decompose and measure as one kept value, and plans cut from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from spectrim import several
from spectrim.allocation import LatencyTable
from spectrim.calibration import Calibration
from spectrim.curves.measured import measured_jointly, measured_layers
from spectrim.curves.probe import Probe
from spectrim.curves.rounding import with_rounding
from spectrim.pipeline.calibrating import calibrate, calibration_blocks
from spectrim.pipeline.decomposing import decompose
from spectrim.pipeline.pieces import Pieces, RememberingProbe
from spectrim.pipeline.progress import Track, silent
from spectrim.pipeline.timing import timetable
from spectrim.planning import Decomposition, Plan, make_plan
from spectrim.recipe import Recipe
from spectrim.workspace import Workspace, kept


def measure(
    model: PreTrainedModel,
    tokenizer: Any,
    decomposition: Decomposition,
    recipe: Recipe | None = None,
    track: Track = silent,
) -> Decomposition:
    """The decomposition with curves corrected by forward passes, as the recipe asks."""
    recipe = recipe or Recipe()
    measuring = _Measuring(model, tokenizer, recipe, track, Pieces(None))
    return measuring.corrected(decomposition)


@dataclass(frozen=True)
class _Measuring:
    model: PreTrainedModel
    tokenizer: Any
    recipe: Recipe
    track: Track
    pieces: Pieces

    def corrected(self, decomposition: Decomposition) -> Decomposition:
        wanted = self.recipe.measure
        if decomposition.units == "own" or not (wanted.layers or wanted.joint):
            return decomposition
        blocks = calibration_blocks(self.model, self.tokenizer, self.recipe)
        if wanted.layers:
            probe = RememberingProbe(Probe(self.model, blocks, wanted.tokens), self.pieces)
            track = lambda names: self.track(names, "measuring curves", len(names))  # noqa: E731
            decomposition = measured_layers(decomposition, probe, self.recipe, track)
        if wanted.joint:
            probe = RememberingProbe(
                Probe(self.model, blocks, wanted.joint_tokens), self.pieces
            )
            decomposition = measured_jointly(decomposition, probe, self.recipe)
        return decomposition


def factorise(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe | None = None,
    workspace: Workspace | None = None,
    track: Track = silent,
) -> Decomposition:
    """calibrate, decompose and measure in one, kept in the workspace as one entry.

    A run that was stopped goes on from what it had stored, some seconds before, of the step
    that it was in.
    """
    recipe = recipe or Recipe()
    calibration = calibrate(model, tokenizer, recipe, workspace, track)
    key = {
        "calibration": calibration.provenance["key"],
        "path": asdict(recipe.path) if recipe.averages_path else None,
        "method": [recipe.method, recipe.method_options],
        "measure": asdict(recipe.measure),
        **recipe.sharing_key,
    }
    path = (workspace or Workspace(None)).path("decomposition", key)
    pieces = Pieces(path)
    if (earlier := kept(path, Decomposition.load)) is not None:
        pieces.remove()  # of a run that was killed when only this was left to do
        return rounded(calibration, earlier, recipe, track)
    result = decompose(model, calibration, recipe, track, pieces)
    result = _Measuring(model, tokenizer, recipe, track, pieces).corrected(result)
    with several.together():
        if path is not None and several.is_first():
            result.save(path)
    pieces.remove()
    return rounded(calibration, result, recipe, track)


def rounded(
    calibration: Calibration,
    decomposition: Decomposition,
    recipe: Recipe,
    track: Track = silent,
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
    """The recipe's allocation at the recipe's budget; times: `timetable`'s, measured now where
    the recipe's budget is one of time and none are given. Raises InputError when it misfits."""
    recipe = recipe or Recipe()
    if recipe.latency is not None and times is None:
        times = timetable(decomposition, recipe)
    return make_plan(decomposition, recipe, times)
