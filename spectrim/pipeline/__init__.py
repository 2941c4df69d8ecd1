"""The conductor: tokens -> calibration -> decomposition -> plan -> layers -> figures.

Each verb takes values and returns a value; a `Workspace` keeps the long ones between runs.
"""

from spectrim.pipeline.benching import Bench, BenchSettings, bench, named_recipes
from spectrim.pipeline.calibrating import (
    calibrate,
    calibration_blocks,
    default_length,
    gather,
    prepare,
)
from spectrim.pipeline.catalogue import catalogue
from spectrim.pipeline.compensating import compensate, for_compensation
from spectrim.pipeline.compressing import check_plan, compress, stored_in
from spectrim.pipeline.embedding import compress_embeddings
from spectrim.pipeline.evaluating import evaluate, evaluate_documents, evaluate_task
from spectrim.pipeline.factorising import decompose, factorise, measure, plan
from spectrim.pipeline.finetuning import FinetuneSettings, finetune
from spectrim.pipeline.modules import (
    CompressedModule,
    agreement,
    compress_module,
    factorise_module,
)
from spectrim.pipeline.quantising import check_quantisation, quantise
from spectrim.pipeline.refining import refine
from spectrim.pipeline.specialising import Specialised, specialise
from spectrim.pipeline.timing import slow_layers, timetable

__all__ = [
    "Bench",
    "BenchSettings",
    "CompressedModule",
    "FinetuneSettings",
    "Specialised",
    "agreement",
    "bench",
    "calibrate",
    "calibration_blocks",
    "catalogue",
    "check_plan",
    "check_quantisation",
    "compensate",
    "compress",
    "compress_embeddings",
    "compress_module",
    "decompose",
    "default_length",
    "evaluate",
    "evaluate_documents",
    "evaluate_task",
    "factorise",
    "factorise_module",
    "finetune",
    "for_compensation",
    "gather",
    "measure",
    "named_recipes",
    "plan",
    "prepare",
    "quantise",
    "refine",
    "slow_layers",
    "specialise",
    "stored_in",
    "timetable",
]
