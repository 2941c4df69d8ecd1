"""spectrim: language models made smaller by low-rank decomposition guided by the loss.

Importing it lets `transformers` load compressed checkpoints with plain `from_pretrained`.

    model, tokenizer = spectrim.load("name or directory")
    calibration = spectrim.calibrate(model, tokenizer, recipe)
    decomposition = spectrim.decompose(model, calibration, recipe)
    plan = spectrim.plan(decomposition, recipe)
    smaller = spectrim.replace_layers(model, decomposition, plan)
    smaller = spectrim.refine(model, smaller, tokenizer, recipe)
    spectrim.save(smaller, tokenizer, "directory")
    spectrim.evaluate(smaller, tokenizer, "text.txt")
    spectrim.fuse(smaller)  # faster inference in place; spectrim.unfuse puts it back
    spectrim.prune_for_task(model, tokenizer, recipe_with_a_task).model
    spectrim.bench(model, tokenizer, {"mine": recipe, "theirs": other}, (0.8, 0.6))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectrim.runtime.log_filters import install_log_filters
from spectrim.version import __version__

install_log_filters()  # transformers imports torchao where it is installed

from spectrim import checkpoint as _hub  # noqa: E402  registers the plug-in
from spectrim.checkpoint import load  # noqa: E402
from spectrim.errors import NumericalWarning, SpectrimError  # noqa: E402

if TYPE_CHECKING:
    from spectrim.adapters.targets import lora_targets
    from spectrim.evaluation import HarnessSettings, evaluate_harness
    from spectrim.inference import fuse, unfuse
    from spectrim.pipeline.any_module import agreement_loss, compress_any, factorize_any
    from spectrim.pipeline.benchmark import BenchSettings, bench
    from spectrim.pipeline.calibrate import calibrate
    from spectrim.pipeline.evaluate import evaluate
    from spectrim.pipeline.finetune import FinetuneSettings, finetune
    from spectrim.pipeline.plan import decompose, factorize, plan, probe_curves
    from spectrim.pipeline.prune_for_task import prune_for_task
    from spectrim.pipeline.quantize import quantize
    from spectrim.pipeline.quantize_factors import quantize_factors
    from spectrim.pipeline.recipe import Recipe
    from spectrim.pipeline.refine import refine
    from spectrim.pipeline.replace import replace_layers

_LAZY = {
    "BenchSettings": "spectrim.pipeline.benchmark",
    "FinetuneSettings": "spectrim.pipeline.finetune",
    "HarnessSettings": "spectrim.evaluation",
    "Recipe": "spectrim.pipeline.recipe",
    "agreement_loss": "spectrim.pipeline.any_module",
    "bench": "spectrim.pipeline.benchmark",
    "calibrate": "spectrim.pipeline.calibrate",
    "compress_any": "spectrim.pipeline.any_module",
    "decompose": "spectrim.pipeline.plan",
    "evaluate": "spectrim.pipeline.evaluate",
    "evaluate_harness": "spectrim.evaluation",
    "factorize": "spectrim.pipeline.plan",
    "factorize_any": "spectrim.pipeline.any_module",
    "finetune": "spectrim.pipeline.finetune",
    "fuse": "spectrim.inference",
    "lora_targets": "spectrim.adapters.targets",
    "plan": "spectrim.pipeline.plan",
    "probe_curves": "spectrim.pipeline.plan",
    "prune_for_task": "spectrim.pipeline.prune_for_task",
    "quantize": "spectrim.pipeline.quantize",
    "quantize_factors": "spectrim.pipeline.quantize_factors",
    "refine": "spectrim.pipeline.refine",
    "replace_layers": "spectrim.pipeline.replace",
    "unfuse": "spectrim.inference",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'spectrim' has no attribute '{name}'")


def save(model: Any, tokenizer: Any, directory: str) -> None:
    """Write a compressed model that loads with plain `from_pretrained`. Raises InputError."""
    _hub.save_compressed(model, tokenizer, directory, model.config.quantization_config)


__all__ = [
    "BenchSettings",
    "FinetuneSettings",
    "HarnessSettings",
    "NumericalWarning",
    "Recipe",
    "SpectrimError",
    "__version__",
    "agreement_loss",
    "bench",
    "calibrate",
    "compress_any",
    "decompose",
    "evaluate",
    "evaluate_harness",
    "factorize",
    "factorize_any",
    "finetune",
    "fuse",
    "load",
    "lora_targets",
    "plan",
    "probe_curves",
    "prune_for_task",
    "quantize",
    "quantize_factors",
    "refine",
    "replace_layers",
    "save",
    "unfuse",
]
