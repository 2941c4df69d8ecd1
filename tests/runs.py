"""Small runs of the whole pipeline on tiny models, for the tests above single parts."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
)

_WORDS = 900


class MetricLog:
    """Collects logged metrics: the values of each name, in order."""

    def __init__(self) -> None:
        self.series: dict[str, list[float]] = {}

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.series.setdefault(name, []).append(value)


def text_file(path: Path, seed: int = 0) -> Path:
    """A few documents of made-up words, enough for a hundred short sequences."""
    source = random.Random(seed)
    words = ["".join(source.choices(string.ascii_letters, k=5)) for _ in range(40)]
    documents = [" ".join(source.choices(words, k=_WORDS // 6)) for _ in range(6)]
    path.write_text("<|endoftext|>".join(documents))
    return path


def small_recipe(data: Path, **changes: Any) -> Recipe:
    """Every step of the default recipe, on eight sequences of 24 tokens."""
    recipe = Recipe(
        budget=0.6,
        rank_multiple=2,  # with one row, sums would depend on where the loader puts it
        calibration=CalibrationRecipe(
            data=str(data), sequences=8, length=24, tokens_per_batch=96
        ),
        hessian_averaging=HessianAveragingRecipe(data_fraction=0.5),
        probe=ProbeRecipe(tokens=48),
    )
    return recipe.with_changes(**changes)


class Forwards:
    """How often a model was run, while it is in use."""

    def __init__(self, model: PreTrainedModel):
        self.count = 0
        self._model = model

    def __enter__(self) -> Forwards:
        self._handle = self._model.register_forward_pre_hook(self._one)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _one(self, *args: object) -> None:
        self.count += 1
