"""Refinements that need statistics, in the pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

import spectrim
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.recipe import RefinementRecipe
from spectrim.pipeline.replace import replace_layers
from spectrim.refinement import required_statistics
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_tokenizer


class Seen:
    """Notes what is being done."""

    def __init__(self) -> None:
        self.what: list[str] = []

    def __call__(self, items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
        self.what.append(what)
        return items


def test_requirements_follow_the_options():
    assert required_statistics("block_distillation", {}) == ()
    for name in ("aa_svd", "saes_svd", "svd_llm_update"):
        assert required_statistics(name, {}) == ("gradient_covariance",)
        assert required_statistics(name, {"out_metric": "identity"}) == ()


@pytest.mark.few(1)
@pytest.mark.parametrize("model", ["gqa", "moe"])
def test_statistics_come_out_of_the_workspace(model, tmp_path):
    """The recipe's own calibration, which is not run a second time."""
    original = TINY_MODELS[model]()
    steps = (RefinementRecipe("svd_llm_update"), RefinementRecipe("saes_svd"))
    recipe = small_recipe(text_file(tmp_path / "text.txt"), refinement=steps)
    cache, seen = Cache(tmp_path / "cache"), Seen()
    decomposition = factorize(original, tiny_tokenizer(), recipe, RunContext(cache))
    smaller = replace_layers(original, decomposition, plan(decomposition, recipe))
    before = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
    context = RunContext(cache, seen)
    refined = spectrim.refine(original, smaller, tiny_tokenizer(), recipe, context)
    assert {what.partition(":")[0] for what in seen.what} == {"svd_llm_update", "saes_svd"}
    after = refined.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    recorded = refined.config.quantization_config.provenance["refinement"]
    assert [entry["name"] for entry in recorded] == ["svd_llm_update", "saes_svd"]
    assert all("block 1 of 2" in entry["losses"] for entry in recorded)
    assert recorded[0]["options"]["out_metric"] == "gradient"


def test_without_a_workspace_they_are_made(tmp_path):
    original = TINY_MODELS["llama"]()
    steps = (RefinementRecipe("svd_llm_update"),)
    recipe = small_recipe(text_file(tmp_path / "text.txt"), refinement=steps)
    decomposition = factorize(original, tiny_tokenizer(), recipe)
    smaller = replace_layers(original, decomposition, plan(decomposition, recipe))
    seen = Seen()
    spectrim.refine(original, smaller, tiny_tokenizer(), recipe, RunContext(progress=seen))
    assert any(what.startswith("calibrating") for what in seen.what)
