"""Task-specific compression: keep the bases whose removal would cost the task's loss most."""

from spectrim.pruning.coordinate_statistics import Moments, moments
from spectrim.pruning.importance import IMPORTANCE, Importance
from spectrim.pruning.objective import Objective
from spectrim.pruning.options import PruningOptions
from spectrim.pruning.prune import Problem, run_pruning
from spectrim.pruning.selection_rules import LayerCost, select, stored_weights
from spectrim.pruning.spectral import SpectralLinear, ThinSVD, thin_svd
from spectrim.pruning.state import PruneStep, PruningState

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
