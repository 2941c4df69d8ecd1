"""Each case compressed once, for all tests of this directory."""

from __future__ import annotations

from pathlib import Path

import pytest

import spectrim
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.plan import decompose, plan
from spectrim.pipeline.replace import replace_layers
from tests.pipeline.basis_groups.cases import CASES, Done, logits, recipe_for
from tests.runs import text_file
from tests.tiny_models import TINY_MODELS, tiny_tokenizer


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def done(tmp_path_factory, text) -> dict[tuple[str, str], Done]:
    """Compressed by OBD with single layers pivoted, and saved."""
    root = tmp_path_factory.mktemp("shared")
    found = {}
    for name, rule in CASES:
        budget = 0.25 if name == "moe" else 0.5  # its attention is dense above
        model, recipe = TINY_MODELS[name](), recipe_for(text, rule, budget=budget)
        calibration = calibrate(model, tiny_tokenizer(), recipe)
        decomposition = decompose(model, calibration, recipe)
        chosen = plan(decomposition, recipe)
        smaller = replace_layers(model, decomposition, chosen)
        directory = root / f"{name}-{rule}"
        spectrim.save(smaller, tiny_tokenizer(), str(directory))
        found[name, rule] = Done(
            model, calibration, decomposition, chosen, smaller, directory, logits(smaller)
        )
    return found
