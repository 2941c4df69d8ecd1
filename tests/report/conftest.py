"""Facts of small compressed models, as `compress` gathers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from spectrim.pipeline.compress import CompressionResult
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.replace import replace_layers
from spectrim.report.facts import ReportData
from spectrim.report.load import compare, facts_of
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

Making = Callable[..., tuple[ReportData, CompressionResult, LoadedModel]]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Making:
    """`made(model, budget=0.6, ...)`: facts without comparison, and what they are of."""
    data = text_file(tmp_path_factory.mktemp("report") / "text.txt")

    def make(
        model: PreTrainedModel, **changes: Any
    ) -> tuple[ReportData, CompressionResult, LoadedModel]:
        recipe, tokenizer = small_recipe(data, **changes), tiny_tokenizer()
        decomposition = factorize(model, tokenizer, recipe)
        plan = run_plan(decomposition, recipe)
        smaller = replace_layers(model, decomposition, plan)
        result = CompressionResult(smaller, plan, recipe, decomposition)
        original = LoadedModel(model, tokenizer, torch.float32, "tiny model")
        return facts_of(original, result), result, original

    return make


@pytest.fixture(scope="session")
def llama(made: Making) -> tuple[ReportData, CompressionResult, LoadedModel]:
    return made(tiny_llama())


@pytest.fixture(scope="session")
def facts(llama: tuple[ReportData, CompressionResult, LoadedModel]) -> ReportData:
    """With the comparison of both models."""
    plain, result, original = llama
    return compare(plain, original, result.model, result.recipe)
