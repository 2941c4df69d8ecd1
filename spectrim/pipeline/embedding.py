"""Factor a model's embedding table beside its linear layers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from spectrim.calibration import CalibrationSettings
from spectrim.calibration.embedding import sum_table_statistics
from spectrim.checkpoint import attach_config
from spectrim.checkpoint.config_entries import table_entry
from spectrim.decompositions import (
    TABLE_METHODS,
    FactoredTable,
    TableProblem,
    decompose_table,
    table_rank,
)
from spectrim.errors import CheckpointError, InputError
from spectrim.models.embedding import TableLocation, find_table, replace_table
from spectrim.models.fingerprint import model_fingerprint
from spectrim.models.targets import find_targets
from spectrim.pipeline.calibration_defaults import batch_tokens
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.recipe import EmbeddingRecipe, Recipe
from spectrim.planning.rank_multiples import multiple_for
from spectrim.runtime.cache import load_if_valid, store
from spectrim.runtime.context import RunContext
from spectrim.runtime.files import read_tensors, write_tensors
from spectrim.statistics import TableStatistics, TableSums


@dataclass(frozen=True)
class PlannedTable:
    """A table's place, its factors, the rank that meets the budget, and its provenance."""

    place: TableLocation
    table: FactoredTable
    rank: int
    given: EmbeddingRecipe

    @property
    def kept(self) -> float:
        """Return the stored fraction of the table's weights."""
        count, width = self.place.shape
        return self.rank * (count + width) / (count * width)

    @property
    def provenance(self) -> dict[str, Any]:
        lost = self.table.lost(self.rank)
        return asdict(self.given) | {"kept": self.kept, "lost": lost}


def compress_embeddings(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    context: RunContext | None = None,
) -> PreTrainedModel:
    """Factor the table of `compressed`, a result of `replace_layers`, as `embeddings` states.

    Modules are replaced in place and the config is updated; the original, which may share
    tensors, is not changed. Raises what `plan_table` raises, and InputError if the plan has
    compressed the tied output embedding already.
    """
    given = context or RunContext()
    planned = plan_table(original, tokenizer, recipe, given)
    if planned is None:
        return compressed
    _check_still_tied(compressed, planned.place)
    replace_table(compressed, planned.place, planned.table.module(planned.rank))
    config: Any = compressed.config.quantization_config
    config.embeddings = table_entry(compressed)
    config.provenance["embeddings"] = planned.provenance
    attach_config(compressed, config)
    return compressed


def _check_still_tied(compressed: PreTrainedModel, place: TableLocation) -> None:
    """Raise InputError if the plan has compressed a tied output embedding."""
    if place.head is None:
        return
    weight: Any = compressed.get_submodule(place.name).weight
    if getattr(compressed.get_output_embeddings(), "weight", None) is not weight:
        raise InputError(
            f"{place.head} is compressed by the plan, and tied to the table that `embeddings` "
            f"factors; exclude {place.head}, or leave `embeddings` out"
        )


def plan_table(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    context: RunContext | None = None,
) -> PlannedTable | None:
    """Factor the table as the recipe's `embeddings` states; None without it.

    Raises ModelError for a table that is more than a lookup, InputError for a budget below
    rank 1 and for unusable data.
    """
    given = recipe.embeddings
    if given is None:
        return None
    place = find_table(model)
    rank = table_rank(
        place.shape, given.budget, multiple_for(recipe.rank_multiple, [place.shape])
    )
    required = TABLE_METHODS.get(given.method).TABLE_REQUIRES
    wanted = frozenset(required) - (frozenset() if place.head else {"head"})
    statistics = None
    if wanted:
        sums = _gathered(model, tokenizer, recipe, wanted, context or RunContext())
        statistics = TableStatistics.from_sums(sums)
    table = solve_table(model, place, given, statistics)
    return PlannedTable(place, table, rank, given)


def solve_table(
    model: Any, place: TableLocation, given: EmbeddingRecipe, statistics: TableStatistics | None
) -> FactoredTable:
    """Factor the table at every rank in the metric of the recipe's method."""
    weight = model.get_submodule(place.name).weight.detach().double().cpu()
    problem = TableProblem(weight, place.head is not None, statistics)
    options = TABLE_METHODS.options(given.method, given.options)
    return decompose_table(given.method, problem, options)


def _gathered(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    wanted: frozenset[str],
    context: RunContext,
) -> TableSums:
    """Sum the statistics in one pass over the recipe's tokens, stored in the cache."""
    blocks = calibration_blocks(model, tokenizer, recipe)
    calibration = recipe.calibration
    targets = find_targets(model, recipe.include, recipe.exclude)
    settings = CalibrationSettings(
        (),
        calibration.labels,
        calibration.tokens_per_batch or batch_tokens(model, targets),
        calibration.seed or 0,
        calibration.temperature,
    )
    key = {
        "model": model_fingerprint(model),
        "data": blocks.fingerprint,
        "wanted": sorted(wanted),
        "labels": settings.label_key,
    }
    path = context.cache.path("embedding", key)
    if (earlier := load_if_valid(path, _load)) is not None:
        return earlier
    sums = sum_table_statistics(model, blocks, wanted, settings, context.progress)
    store(path, lambda place: write_tensors(place, sums, {"kind": "embedding"}))
    return sums


def _load(path: Path) -> dict[str, Tensor]:
    tensors, metadata = read_tensors(path)
    if metadata.get("kind") != "embedding" or "counts" not in tensors:
        raise CheckpointError(f"{path} is not a file of embedding statistics")
    return tensors
