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

__version__ = "0.1.0"

from spectrim.noise import install_log_filters

install_log_filters()  # transformers imports torchao where it is installed

from spectrim import hub as _hub  # noqa: E402  registers the plug-in
from spectrim.errors import NumericalWarning, SpectrimError  # noqa: E402
from spectrim.hub import load  # noqa: E402

if TYPE_CHECKING:
    from spectrim.evaluation import HarnessSettings, evaluate_harness
    from spectrim.inference import fuse, unfuse
    from spectrim.pipeline import (
        BenchSettings,
        FinetuneSettings,
        agreement_loss,
        bench,
        calibrate,
        compress_any,
        decompose,
        evaluate,
        factorize,
        factorize_any,
        finetune,
        plan,
        probe_curves,
        prune_for_task,
        quantize,
        quantize_factors,
        refine,
        replace_layers,
    )
    from spectrim.recipe import Recipe
    from spectrim.surgery.lora_targets import lora_targets

_LAZY = {
    "Recipe": "spectrim.recipe",
    **dict.fromkeys(("fuse", "unfuse"), "spectrim.inference"),
    **dict.fromkeys(
        (
            "BenchSettings",
            "FinetuneSettings",
            "agreement_loss",
            "bench",
            "calibrate",
            "compress_any",
            "decompose",
            "evaluate",
            "factorize",
            "factorize_any",
            "finetune",
            "probe_curves",
            "plan",
            "quantize",
            "quantize_factors",
            "refine",
            "prune_for_task",
            "replace_layers",
        ),
        "spectrim.pipeline",
    ),
    "lora_targets": "spectrim.surgery.lora_targets",
    "HarnessSettings": "spectrim.evaluation",
    "evaluate_harness": "spectrim.evaluation",
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
