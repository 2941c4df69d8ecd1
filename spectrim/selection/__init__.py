"""Task-specific compression: keep the bases whose removal would cost the task's loss most."""

from spectrim.selection.importance import IMPORTANCE, Importance
from spectrim.selection.moments import Moments, moments
from spectrim.selection.objective import Objective
from spectrim.selection.options import SelectionOptions
from spectrim.selection.rules import LayerCost, select, stored
from spectrim.selection.run import Problem, run_selection
from spectrim.selection.spectral import SpectralLinear, Thin, refactored
from spectrim.selection.state import Event, SelectionState

__all__ = [
    "IMPORTANCE",
    "Event",
    "Importance",
    "LayerCost",
    "Moments",
    "Objective",
    "Problem",
    "SelectionOptions",
    "SelectionState",
    "SpectralLinear",
    "Thin",
    "moments",
    "refactored",
    "run_selection",
    "select",
    "stored",
]
