"""Models whose layers share bases, and what is made of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.pipeline.recipe import HessianAveragingRecipe, Recipe, SharingRecipe
from spectrim.planning import Decomposition, Plan
from spectrim.statistics import Calibration
from tests.runs import small_recipe
from tests.tiny_models import tiny_tokens

MODELS = ("llama", "gqa", "tied", "qwen2_bias", "gpt2", "moe")
CASES = [(model, "adjacent") for model in MODELS] + [
    ("gqa", "same_input"),
    ("llama", "clustered"),
]
cases = pytest.mark.parametrize("case", CASES, ids="-".join)


@dataclass(frozen=True)
class Done:
    model: PreTrainedModel
    calibration: Calibration
    decomposition: Decomposition
    plan: Plan
    compressed: PreTrainedModel
    directory: Path
    logits: Tensor


def recipe_for(text: Path, rule: str, **changes) -> Recipe:
    sharing = SharingRecipe(rule=rule, accept="all", max_error=2.0)
    given = {
        "hessian_averaging": HessianAveragingRecipe(weight=0.0),
        "sharing": sharing,
        "rank_multiple": 1,
    } | changes
    return small_recipe(text, **given)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(tiny_tokens()).logits
