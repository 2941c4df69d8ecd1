"""The conductor: tokens -> calibration -> decomposition -> plan -> layers -> figures.

Each verb takes values and returns a value; a `Cache` keeps the long ones between runs.
"""

from spectrim.pipeline.benching import Bench, BenchSettings, bench, named_recipes
from spectrim.pipeline.calibrating import (
    calibrate,
    calibration_blocks,
    default_length,
    gather,
    prepare,
)
from spectrim.pipeline.catalogue import list_methods
from spectrim.pipeline.compensating import quantize, with_correction
from spectrim.pipeline.compressing import cast_for_saving, check_plan, replace_layers
from spectrim.pipeline.embedding import compress_embeddings
from spectrim.pipeline.evaluating import evaluate, evaluate_documents, evaluate_task
from spectrim.pipeline.factorising import decompose, factorize, plan, probe_curves
from spectrim.pipeline.finetuning import FinetuneSettings, finetune
from spectrim.pipeline.modules import (
    CompressedModule,
    agreement_loss,
    compress_any,
    factorize_any,
)
from spectrim.pipeline.quantising import check_quantization, quantize_factors
from spectrim.pipeline.refining import refine
from spectrim.pipeline.specialising import PrunedModel, prune_for_task
from spectrim.pipeline.timing import latency_table, slow_layers

__all__ = [
    "Bench",
    "BenchSettings",
    "CompressedModule",
    "FinetuneSettings",
    "PrunedModel",
    "agreement_loss",
    "bench",
    "calibrate",
    "calibration_blocks",
    "cast_for_saving",
    "check_plan",
    "check_quantization",
    "compress_any",
    "compress_embeddings",
    "decompose",
    "default_length",
    "evaluate",
    "evaluate_documents",
    "evaluate_task",
    "factorize",
    "factorize_any",
    "finetune",
    "gather",
    "latency_table",
    "list_methods",
    "named_recipes",
    "plan",
    "prepare",
    "probe_curves",
    "prune_for_task",
    "quantize",
    "quantize_factors",
    "refine",
    "replace_layers",
    "slow_layers",
    "with_correction",
]
