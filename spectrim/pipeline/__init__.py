"""The conductor: tokens -> calibration -> decomposition -> plan -> layers -> figures.

Each verb takes values and returns a value; a `Workspace` keeps the long ones between runs.
"""

from spectrim.pipeline.calibrating import (
    calibrate,
    calibration_blocks,
    default_length,
    gather,
    prepare,
)
from spectrim.pipeline.catalogue import catalogue
from spectrim.pipeline.compressing import check_plan, compress, stored_in
from spectrim.pipeline.evaluating import evaluate, evaluate_documents
from spectrim.pipeline.factorising import decompose, factorise, measure, plan
from spectrim.pipeline.refining import refine

__all__ = [
    "calibrate",
    "calibration_blocks",
    "catalogue",
    "check_plan",
    "compress",
    "decompose",
    "default_length",
    "evaluate",
    "evaluate_documents",
    "factorise",
    "gather",
    "measure",
    "plan",
    "prepare",
    "refine",
    "stored_in",
]
