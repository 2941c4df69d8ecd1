"""The recipes that have a name, and how a name or a file becomes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectrim.errors import InputError
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
    RefinementRecipe,
    recipe_from,
)
from spectrim.pruning import PruningOptions
from spectrim.runtime.files import is_file, read_mapping

_TRAINED: dict[str, Any] = {
    "precision": "bfloat16",
    "optimizer_basis": "kfac_eigen",
    "lr_scaling": "kl",
}
_TOKENS = 500_000
"""Of text that the trained recipes read, in each of their stages once."""
_BLOCK = RefinementRecipe(
    "block_distillation",
    {"tokens": _TOKENS, "out_metric": "gradient"} | _TRAINED,
    tokens=_TOKENS,
)
_END_TO_END = RefinementRecipe(
    "distillation",
    {"tokens": _TOKENS, "learning_rate": 4.5e-4} | _TRAINED,
    tokens=_TOKENS,
)

PRESETS: dict[str, Recipe] = {
    "default": Recipe(),
    "fast": Recipe(
        calibration=CalibrationRecipe(sequences=64),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
        probe=ProbeRecipe(per_layer=False, joint=False),
    ),
    "closed_form": Recipe(refinement=(RefinementRecipe("saes_svd"),)),
    "best": Recipe(refinement=(_BLOCK, _END_TO_END)),
    "bsi": Recipe(
        budget=0.2,
        calibration=CalibrationRecipe(sequences=1024, labels="sampled", temperature=4.0),
        pruning=PruningOptions(
            importance="fisher",
            importance_options={"temperature": 1.0},
            gradient_term="none",
            steps=0,
            prune_steps=1,
            scoring_examples=512,
        ),
        refinement=(RefinementRecipe("finetune"),),
    ),
    "bsi_published": Recipe(
        method="svd",
        layer="lowrank",
        budget=0.2,
        pruning=PruningOptions(importance="hutchinson", gradient_term="signed"),
        refinement=(RefinementRecipe("finetune"),),
    ),
    "basel": Recipe(
        method="svd",
        layer="lowrank",
        budget=0.2,
        pruning=PruningOptions(importance="magnitude", rule="energy"),
        refinement=(RefinementRecipe("finetune"),),
    ),
}
"""Recipes by name, as `--recipe NAME` takes them."""


SUMMARIES = {
    "default": "OBD-LLM, ranks by predicted loss, pivoted storage; curves are measured, "
    "nothing is trained.",
    "fast": "The default on 64 sequences, from predicted curves alone: a first look.",
    "closed_form": "The default, then every layer once more on the inputs that the compressed "
    "model gives it (SAES-SVD); nothing is trained.",
    "best": "The default, then blocks and the whole model trained against the original on "
    "half a million tokens: the least damage.",
    "bsi": "A model for one task: bases of OBD, removed at once by the curvature of the task's "
    "loss, then fine-tuned; needs a task.",
    "bsi_published": "BSI as published: SVD bases, Hutchinson's probes, slopes with their "
    "sign; needs a task.",
    "basel": "Basel as published: SVD bases, kept by the size of their singular values; "
    "needs a task.",
}
"""What each preset is for, in a sentence."""


def load_recipe(name_or_path: str) -> Recipe:
    """A preset by name, or a YAML file. Raises InputError."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if not is_file(path):
        raise InputError(
            f"no recipe '{name_or_path}': expected a YAML file or one of {', '.join(PRESETS)}"
        )
    return recipe_from(read_mapping(path), str(path))


__all__ = [
    "PRESETS",
    "SUMMARIES",
    "load_recipe",
]
