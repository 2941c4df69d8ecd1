"""From spectra to a plan: which rank each layer gets, and what that is predicted to cost."""

from spectrim.planning.decomposition import Decomposition, JointCorrection
from spectrim.planning.plan import SHARED, LayerPlan, Plan, load_plan, save_plan
from spectrim.planning.planner import SizeLossPoint, make_plan, plan_for_loss, size_curve

__all__ = [
    "SHARED",
    "Decomposition",
    "JointCorrection",
    "LayerPlan",
    "Plan",
    "SizeLossPoint",
    "load_plan",
    "make_plan",
    "plan_for_loss",
    "save_plan",
    "size_curve",
]
