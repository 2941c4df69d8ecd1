"""Made-up examples with labels, for the tiny models of tests/tiny_models.py."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from spectrim.pipeline.recipe import CalibrationRecipe, Recipe

TARGETS = ("t5", "bart")
"""Models that take targets; all others take classes."""


def examples_file(path: Path, name: str, count: int = 48, seed: int = 0) -> Path:
    """Write examples for the model `name`: pairs of texts, or texts with their class."""
    source = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        text = "".join(source.choices("abcdefgh ", k=source.randint(6, 24)))
        row: dict[str, Any] = {"text": f"x{text}x"}
        if name in TARGETS:
            row["summary"] = f"{text[::-1][: source.randint(2, 9)]}y"
        else:
            row["label"] = source.choice([0, 1, "good"])
        rows.append(row)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def labeled_recipe(data: Path, **changes: Any) -> Recipe:
    calibration = CalibrationRecipe(data=str(data), seed=0, tokens_per_batch=128)
    return Recipe(**{"calibration": calibration, "budget": 0.6} | changes)
