"""Task-specific compression: keep the bases whose removal would cost the task's loss most."""

from spectrim.selection.importance import IMPORTANCE, Importance
from spectrim.selection.moments import Moments, moments
from spectrim.selection.objective import Objective
from spectrim.selection.options import PruningOptions
from spectrim.selection.rules import LayerCost, select, stored_weights
from spectrim.selection.run import Problem, run_pruning
from spectrim.selection.spectral import SpectralLinear, ThinSVD, thin_svd
from spectrim.selection.state import PruneStep, PruningState

__all__ = [
    "IMPORTANCE",
    "Importance",
    "LayerCost",
    "Moments",
    "Objective",
    "Problem",
    "PruneStep",
    "PruningOptions",
    "PruningState",
    "SpectralLinear",
    "ThinSVD",
    "moments",
    "run_pruning",
    "select",
    "stored_weights",
    "thin_svd",
]
