"""The combinations of features: one table, printed by `spectrim ls --compatibility`.

A feature is a part of a recipe, a choice that limits what can be done with it, or a way to run
it. Pairs that are not in the table combine; `check` raises for the first pair that does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from spectrim.allocation import ALLOCATORS, BY_STORAGE, TIMED
from spectrim.decompositions import DECOMPOSITIONS, TABLE_METHODS
from spectrim.errors import InputError
from spectrim.layers import LAYERS, layer_class
from spectrim.layers.quantized import QUANTIZERS
from spectrim.models.kind import CAUSAL, ModelKind
from spectrim.pipeline.quantizer_options import check_choices
from spectrim.pruning.experts import EXPERT_ORDERS
from spectrim.pruning.importance import IMPORTANCE
from spectrim.refinement import REFINEMENTS

if TYPE_CHECKING:
    from spectrim.pipeline.recipe import Recipe

STREAMING = "--memory"
PROCESSES = "several processes"
ONE_PROCESS = "one process"
FSDP = "--fsdp"
TARGET_LOSS = "--target-loss"
FOLLOWED_PLAN = "--plan"
COMPRESS = "compress"
BENCH = "bench"
EXPLORE = "explore"
QUANTIZE = "quantize"
ANY_MODEL = "compress_any"
LABELED = "an encoder-decoder or classifier"
IMAGE_TEXT = "a vision-language model"

PARTS: dict[str, Callable[[Recipe], bool]] = {
    "leverage sampling": lambda r: r.calibration.sampling == "leverage",
    "task": lambda r: r.task is not None,
    "latency": lambda r: r.latency is not None,
    "pruning": lambda r: r.pruning is not None,
    "correction": lambda r: r.correction is not None,
    "quantization": lambda r: r.quantization is not None,
    "sharing": lambda r: r.sharing.rule != "none",
    "embeddings": lambda r: r.embeddings is not None,
    "refinement": lambda r: bool(r.refinement),
    "elastic": lambda r: r.elastic is not None,
    "experts": lambda r: r.experts is not None,
}
"""Parts of a recipe that may be left out."""
CHOICES: dict[str, Callable[[Recipe], bool]] = {
    "an untimed layer type": lambda r: r.layer not in TIMED,
    "a lossy layer type": lambda r: not layer_class(r.layer).LOSSLESS,
    "layer shared_basis": lambda r: r.layer == "shared_basis",
    "no sharing rule": lambda r: r.sharing.rule == "none",
    "a method without metrics": lambda r: not hasattr(DECOMPOSITIONS.get(r.method), "metric"),
    "an allocation of weights": lambda r: r.allocation not in BY_STORAGE,
    "an allocation other than loss_optimal": lambda r: r.allocation != "loss_optimal",
    "packed rows": lambda r: r.calibration.rows == "packed",
    "probing through blocks": lambda r: r.probe.through == "block",
    "factors quantized across components": lambda r: (
        r.quantization is not None and (r.quantization.backend != "rtn" or r.layer != "lowrank")
    ),
    "a refinement of one size": lambda r: any(
        not hasattr(REFINEMENTS.get(step.name), "ALL_SIZES") for step in r.refinement
    ),
    "ranks that int4 cannot read": lambda r: _has_unreadable_ranks(r),
    "factors quantized by statistics": lambda r: (
        r.quantization is not None and bool(QUANTIZERS.get(r.quantization.backend).REQUIRES)
    ),
}
"""Choices that only some parts take, true for a recipe that makes them."""
_WHOLE = "this step needs the whole model in memory"
_ONE_PROCESS = "start without torchrun"
_LANGUAGE = "this step is for language models"
_CAUSAL = "this step is for causal language models"

WHY_NOT: dict[tuple[str, str], str] = {
    ("latency", "pruning"): "pruning counts weights, not time",
    ("latency", "correction"): "the time of quantized layers is not measured",
    ("latency", "quantization"): "the time of quantized factors is not measured",
    ("latency", "sharing"): "the time of layers on a shared basis is not measured",
    ("latency", "an untimed layer type"): f"only {' and '.join(TIMED)} layers are timed",
    ("latency", TARGET_LOSS): "a plan has one goal: a budget of time or a target loss",
    ("latency", STREAMING): _WHOLE,
    ("latency", EXPLORE): "the page's slider is a fraction of the weights; use `spectrim plan`",
    ("leverage sampling", "pruning"): "pruning reads every example of the task",
    ("leverage sampling", STREAMING): _WHOLE,
    ("leverage sampling", ANY_MODEL): _LANGUAGE,
    ("pruning", "correction"): "pruning removes singular values, a correction adds them",
    ("pruning", "quantization"): "pruning counts weights, not bytes",
    ("pruning", "sharing"): "singular values are chosen layer by layer",
    ("pruning", "a lossy layer type"): "the chosen singular values are not stored as they are; "
    "choose pivoted or lowrank",
    ("pruning", TARGET_LOSS): "pruning predicts no loss; give a --budget",
    ("pruning", FOLLOWED_PLAN): "pruning chooses the ranks itself; give a --budget",
    ("pruning", STREAMING): _WHOLE,
    ("pruning", PROCESSES): _ONE_PROCESS,
    ("pruning", EXPLORE): "pruning predicts no curve to explore",
    ("pruning", ANY_MODEL): _LANGUAGE,
    ("correction", "quantization"): "layers are quantized dense or as factors, not both",
    ("correction", "sharing"): "corrections are added layer by layer",
    ("correction", "embeddings"): "tables are not factored beside quantized layers",
    ("correction", "refinement"): "use `spectrim finetune` on the quantized model",
    ("correction", "a method without metrics"): "it has no optimum for the residual of a "
    "quantized weight; choose a method with metrics, such as obd or eora",
    ("correction", "an allocation of weights"): "corrections are ranked by loss or uniformly; "
    f"choose {' or '.join(BY_STORAGE)}",
    ("correction", COMPRESS): "run it by `spectrim quantize`",
    ("correction", BENCH): "run it by `spectrim quantize`; rows compare factored layers",
    ("correction", EXPLORE): "run it by `spectrim quantize`",
    ("correction", STREAMING): _WHOLE,
    ("correction", ANY_MODEL): _LANGUAGE,
    ("quantization", "an allocation of weights"): "the allocation does not count bytes; choose "
    f"{' or '.join(BY_STORAGE)}",
    ("quantization", "ranks that int4 cannot read"): "torchao's int4 reads groups of columns, "
    "so ranks must be multiples of the group: set rank_multiple to quantization.group_size "
    "(32), or quantization.backend=rtn",
    ("quantization", QUANTIZE): "this command quantizes dense layers; use `spectrim compress`",
    ("quantization", STREAMING): _WHOLE,
    ("quantization", ANY_MODEL): _LANGUAGE,
    ("factors quantized by statistics", "sharing"): "factors are rounded layer by layer; set "
    "quantization.backend=rtn",
    ("factors quantized by statistics", "a lossy layer type"): "only plain and pivoted factors "
    "have a metric to round in; choose pivoted or lowrank",
    ("factors quantized by statistics", PROCESSES): _ONE_PROCESS,
    ("sharing", "a method without metrics"): "layers share a basis by a pair of metrics; "
    "choose a method such as obd or svd_llm",
    ("sharing", STREAMING): _WHOLE,
    ("sharing", ANY_MODEL): _LANGUAGE,
    (
        "layer shared_basis",
        "no sharing rule",
    ): "no layers would share a basis; set sharing.rule",
    ("embeddings", STREAMING): _WHOLE,
    ("refinement", STREAMING): _WHOLE,
    ("refinement", ANY_MODEL): _LANGUAGE,
    ("elastic", "latency"): "the order of sizes counts weights; choose a size by time with "
    "`spectrim export --latency-budget`",
    ("elastic", "pruning"): "pruning ends at one size",
    ("elastic", "correction"): "quantized layers have one size",
    ("elastic", "factors quantized across components"): "their scales hold for one rank; set "
    "quantization.backend to rtn and layer to lowrank",
    ("elastic", "sharing"): "layers on a shared basis have one size",
    ("elastic", "embeddings"): "a factored table has one size",
    ("elastic", "a refinement of one size"): "its factors are no prefixes of one "
    "another; set refinement to distillation, which trains all sizes, or train the size that "
    "`spectrim export --budget` writes by `spectrim finetune`",
    ("elastic", "a lossy layer type"): "a rank is no beginning of a larger one; choose pivoted "
    "or lowrank",
    ("elastic", "layer shared_basis"): "layers on a shared basis have one size",
    ("elastic", "a method without metrics"): "its biases depend on the rank; choose a method "
    "with metrics, such as obd",
    ("elastic", "an allocation other than loss_optimal"): "sizes are nested in the order of "
    "predicted loss; leave the allocation at loss_optimal",
    ("elastic", TARGET_LOSS): "the file holds all sizes; choose one by its loss when loading",
    ("elastic", FOLLOWED_PLAN): "the file holds many plans",
    ("elastic", STREAMING): _WHOLE,
    ("elastic", PROCESSES): _ONE_PROCESS,
    ("elastic", BENCH): "rows compare models of one size",
    ("elastic", EXPLORE): "the page plans every size by itself",
    ("elastic", QUANTIZE): "quantized layers have one size",
    ("elastic", ANY_MODEL): _LANGUAGE,
    (LABELED, "leverage sampling"): _CAUSAL,
    (LABELED, "task"): "its examples are what --data names",
    (LABELED, "pruning"): _CAUSAL,
    (LABELED, "correction"): _CAUSAL,
    (LABELED, "sharing"): _CAUSAL,
    (LABELED, "embeddings"): _CAUSAL,
    (LABELED, "refinement"): _CAUSAL,
    (LABELED, "elastic"): _CAUSAL,
    (LABELED, "packed rows"): "examples are rows of their own",
    (LABELED, "probing through blocks"): "its blocks are run as a whole",
    (LABELED, STREAMING): _WHOLE,
    (LABELED, PROCESSES): _ONE_PROCESS,
    (LABELED, BENCH): _CAUSAL,
    (LABELED, EXPLORE): _CAUSAL,
    (LABELED, QUANTIZE): _CAUSAL,
    (IMAGE_TEXT, "leverage sampling"): _CAUSAL,
    (IMAGE_TEXT, "pruning"): _CAUSAL,
    (IMAGE_TEXT, "correction"): _CAUSAL,
    (IMAGE_TEXT, "sharing"): _CAUSAL,
    (IMAGE_TEXT, "embeddings"): _CAUSAL,
    (IMAGE_TEXT, "refinement"): _CAUSAL,
    (IMAGE_TEXT, "elastic"): _CAUSAL,
    (IMAGE_TEXT, "probing through blocks"): "its blocks are run as a whole",
    (IMAGE_TEXT, STREAMING): _WHOLE,
    (IMAGE_TEXT, BENCH): _CAUSAL,
    (IMAGE_TEXT, EXPLORE): _CAUSAL,
    (IMAGE_TEXT, QUANTIZE): _CAUSAL,
    (FSDP, STREAMING): "one shares weights among processes, the other reads them block by "
    "block; give one of the two",
    (FSDP, ONE_PROCESS): "weights are shared among the processes that torchrun starts: "
    "`torchrun --nproc-per-node 2 -m spectrim ...`",
    ("experts", "latency"): "the time of experts is not measured",
    ("experts", "pruning"): "pruning chooses singular values alone",
    ("experts", "correction"): "corrections are added to every layer",
    ("experts", "elastic"): "a size that is cut when it is loaded has all experts",
    ("experts", STREAMING): _WHOLE,
    ("experts", PROCESSES): _ONE_PROCESS,
    ("experts", EXPLORE): "the page plans ranks alone; use `spectrim plan`",
    ("experts", QUANTIZE): "run it by `spectrim compress`",
    ("experts", ANY_MODEL): _LANGUAGE,
    (LABELED, "experts"): _CAUSAL,
    (IMAGE_TEXT, "experts"): _CAUSAL,
    (STREAMING, PROCESSES): _ONE_PROCESS,
    (FOLLOWED_PLAN, TARGET_LOSS): "the plan already has the ranks",
}
"""Pairs that do not combine, and why. What is streamed has to fit in memory part by part."""


def check(recipe: Recipe, *ways: str) -> None:
    """Raise InputError for the first pair of features that do not combine.

    Args:
        recipe: its parts and choices are features.
        ways: how it is run (`STREAMING`, `BENCH`, ...).
    """
    asked = [name for name, asks in PARTS.items() if asks(recipe)] + list(ways)
    made = [name for name, makes in CHOICES.items() if makes(recipe)]
    for one, other in combinations([*asked, *made], 2):
        why = WHY_NOT.get((one, other)) or WHY_NOT.get((other, one))
        if why is not None:
            raise InputError(f"{one} and {other} cannot be combined: {why}")


def in_parts(recipe: Recipe) -> Recipe:
    """Return the recipe of a run with one part of the model in memory at a time.

    Measured curves and averaged Hessians need the whole model and are left out. Raises
    InputError for a step that needs it and cannot be left out.
    """
    check(recipe, STREAMING)
    return recipe.with_changes(
        probe=replace(recipe.probe, per_layer=False, joint=False),
        hessian_averaging=replace(recipe.hessian_averaging, weight=0.0),
    )


def ways_of(kind: ModelKind) -> list[str]:
    """Return the feature that a model's kind is; none for causal language models."""
    if kind is CAUSAL:
        return []
    return [LABELED if kind.labeled else IMAGE_TEXT]


def check_names(recipe: Recipe) -> None:
    """Raise UnknownNameError or InputError for a name or option that no entry has."""
    DECOMPOSITIONS.options(recipe.method, recipe.method_options)
    ALLOCATORS.options(recipe.allocation, recipe.allocation_options)
    LAYERS.options(recipe.layer, recipe.layer_options)
    if (correction := recipe.correction) is not None:
        QUANTIZERS.options(correction.quantizer, correction.quantizer_options)
        if correction.bits_per_weight is not None:
            check_choices(correction)
    if (quantization := recipe.quantization) is not None:
        QUANTIZERS.options(quantization.backend, quantization.options)
    if (experts := recipe.experts) is not None:
        EXPERT_ORDERS.options(experts.order, experts.order_options)
    if (embeddings := recipe.embeddings) is not None:
        TABLE_METHODS.options(embeddings.method, embeddings.options)
    if (pruning := recipe.pruning) is not None:
        IMPORTANCE.options(pruning.importance, pruning.importance_options)
    for step in recipe.refinement:
        REFINEMENTS.options(step.name, step.options)


def _has_unreadable_ranks(recipe: Recipe) -> bool:
    quantization = recipe.quantization
    if quantization is None or recipe.rank_multiple == "auto":
        return False
    return bool(recipe.rank_multiple % quantization.multiple)


def table() -> list[tuple[str, str, str]]:
    """Return (feature, feature, why they do not combine) of all pairs."""
    return [(one, other, why) for (one, other), why in WHY_NOT.items()]
