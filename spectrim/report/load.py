"""The facts and the page of a compressed model, on creation and from its directory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from spectrim import checkpoint
from spectrim.data.labeled import LabeledRows
from spectrim.errors import InputError, SpectrimError
from spectrim.layers import CompactLinear
from spectrim.models.linear import get_shape
from spectrim.pipeline.compress import CompressionResult
from spectrim.pipeline.inputs import calibration_rows
from spectrim.pipeline.inspect import linear_layers
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.recipe import Recipe
from spectrim.report.collect import parts_of, plan_facts, with_bytes, with_curves
from spectrim.report.compare import with_divergence, with_labeled_divergence, with_texts
from spectrim.report.facts import (
    EVENTS_FILE,
    FACTS_FILE,
    PAGE_FILE,
    LayerFacts,
    ReportData,
    load_facts,
)
from spectrim.report.page import report_page
from spectrim.report.pruning_figure import with_prunings
from spectrim.runtime.output_dir import is_spectrim_output


def facts_of(original: LoadedModel, result: CompressionResult) -> ReportData:
    """Return the facts that need no run of a model."""
    facts = plan_facts(original.name, result.plan, result.recipe)
    if result.decomposition is not None:
        facts = with_curves(facts, result.decomposition, result.recipe)
    return with_bytes(facts, original.model, result.model, original.dtype)


def compare(
    facts: ReportData, original: LoadedModel, smaller: PreTrainedModel, recipe: Recipe
) -> ReportData:
    """Add the comparison of both models on calibration tokens and on a few prompts.

    Models whose loss needs labels are compared on their examples.

    If a model cannot be run so, a warning states the reason and the comparison is omitted.
    """
    model, tokenizer = original.model, original.tokenizer
    try:
        tokens = calibration_rows(model, tokenizer, recipe)
        if isinstance(tokens, LabeledRows):
            return with_labeled_divergence(facts, model, smaller, tokens)
        facts = with_divergence(facts, model, smaller, tokens)
        return with_texts(facts, model, smaller, tokenizer)
    except (SpectrimError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).split("\n")[0]
        warnings.warn(f"the report does not compare the models: {reason}", stacklevel=2)
        return facts


def report_extras(facts: ReportData, page: bool = True) -> dict[str, str]:
    """Return the files to write beside a checkpoint, by name."""
    pages = {PAGE_FILE: report_page(facts)} if page else {}
    return {FACTS_FILE: facts.to_json(), **pages}


def facts_in(directory: Path, trust_remote_code: bool = False) -> ReportData:
    """Return the facts stored in `directory`, else what its checkpoint contains.

    Raises:
        InputError: The directory holds no result.
    """
    if not is_spectrim_output(directory):
        raise InputError(
            f"{directory} is not a model that spectrim compressed; give the directory that "
            "`spectrim compress -o` wrote"
        )
    kept = (directory / FACTS_FILE).is_file()
    facts = (
        load_facts(directory / FACTS_FILE)
        if kept
        else _facts_of_checkpoint(directory, trust_remote_code)
    )
    events = directory / EVENTS_FILE
    if not facts.prunings and events.is_file():
        facts = with_prunings(facts, events.read_text(encoding="utf-8"), str(events))
    return facts


def _facts_of_checkpoint(directory: Path, trust_remote_code: bool) -> ReportData:
    model, _ = checkpoint.load(directory, trust_remote_code=trust_remote_code)
    config = model.config.quantization_config
    if not config.layers:
        raise InputError(f"{directory} holds no compressed layers to report on")
    layers = list(_layers_of(model, config.layers))
    dense = sum(math.prod(layer.shape) for layer in layers)
    kept = sum(layer.weights for layer in layers) / dense
    plan = config.provenance.get("plan") or {}
    recipe = directory / "spectrim_recipe.yaml"
    facts = ReportData(
        directory.resolve().name,
        plan.get("method", "unknown method"),
        plan.get("allocation", "unknown"),
        plan.get("layer", "compressed"),
        plan.get("budget", kept),
        kept,
        plan.get("predicted_loss"),
        layers,
        itemsize=next(model.parameters()).element_size(),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        versions=config.provenance.get("versions", {}),
    )
    return _with_own_bytes(facts, model)


def _layers_of(model: nn.Module, entries: dict[str, Any]) -> Iterator[LayerFacts]:
    for name, module in linear_layers(model):
        if not isinstance(module, CompactLinear):
            shape = get_shape(module)
            yield LayerFacts(name, shape, None, "dense", math.prod(shape))
            continue
        weights = sum(p.numel() for n, p in module.named_parameters() if "bias" not in n)
        shape = (module.out_features, module.in_features)
        yield LayerFacts(name, shape, module.rank or None, entries[name]["kind"], weights)


def _with_own_bytes(facts: ReportData, model: PreTrainedModel) -> ReportData:
    """Return bytes before as if every layer were dense in its stored dtype."""
    names = {layer.name for layer in facts.layers}
    state = model.state_dict()
    stored = {n: tensor.numel() * tensor.element_size() for n, tensor in state.items()}
    dense = {n: size for n, size in stored.items() if not _belongs(n, names)}
    dense |= {
        f"{layer.name}.weight": math.prod(layer.shape) * facts.itemsize
        for layer in facts.layers
    }
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = [n for n, m in model.named_modules() if any(m is table for table in tables)]
    return replace(facts, parts=parts_of(dense, stored, names, outside))


def _belongs(tensor: str, names: Iterable[str]) -> bool:
    return any(tensor.startswith(name + ".") for name in names)
