"""Times of a plan's layers on this machine, measured once and stored in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from spectrim.allocation import LatencyTable, LayerTimes
from spectrim.evaluation.speed.layer_times import TimingSpec, layer_times
from spectrim.evaluation.speed.random_models import is_timed
from spectrim.pipeline.recipe import LatencyRecipe, Recipe
from spectrim.planning import Decomposition, Plan
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache, load_if_valid
from spectrim.runtime.context import RunContext
from spectrim.runtime.files import read_tensors, write_tensors

TOLERATED = 1.05
"""By how much slower than dense a layer may be measured before anyone is told."""
PROMPT = 128
"""Tokens that stand for a prompt."""
UNLESS = " unless the model is fused"
_REASONS = {
    True: "the second product costs more than the smaller ones save; lower the budget, keep "
    "such layers dense (--exclude), or plan by time (--latency-budget)",
    False: "call spectrim.fuse(model) after loading",
}
"""By whether the layer was fused."""
Shape = tuple[int, int]


def latency_table(
    decomposition: Decomposition,
    recipe: Recipe,
    context: RunContext | None = None,
) -> LatencyTable:
    """Return the times of all shapes, dense and as the recipe's layer type.

    They are for the recipe's tokens (one by default). Raises InputError for a kind that cannot
    be timed.
    """
    shapes = [s for n, s in decomposition.shapes.items() if n not in decomposition.groups]
    place = timing_spec(recipe)
    return time_shapes(shapes, recipe.layer, place, context or RunContext())


def timing_spec(recipe: Recipe) -> TimingSpec:
    """Return the device, dtype and tokens of the timing.

    On a GPU if there is one, in the stored dtype (float32 by default), fused, for the recipe's
    tokens (one by default).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, recipe.save_dtype or "float32")
    return TimingSpec(device, dtype, (recipe.latency or LatencyRecipe()).tokens)


def slow_layers(plan: Plan, recipe: Recipe, context: RunContext | None = None) -> Iterator[str]:
    """Yield warnings of factored layers that are slower here than the dense ones.

    One for the recipe's tokens (one by default) and one for prompts, if there are such layers.
    Layers of kinds that cannot be timed, and those on shared bases, are skipped.
    """
    single = {n: layer for n, layer in plan.layers.items() if not layer.members}
    ranks = {n: layer.rank for n, layer in single.items() if layer.rank is not None}
    if not ranks or not is_timed(plan.layer):
        return
    usual = timing_spec(recipe)
    shapes = {name: single[name].shape for name in ranks}
    for tokens in dict.fromkeys((usual.tokens, PROMPT)):
        for fused in (True, False):
            place = replace(usual, tokens=tokens, fused=fused)
            table = time_shapes(shapes.values(), plan.layer, place, context or RunContext())
            if (text := _complaint(table, shapes, ranks, plan.layer, fused)) is not None:
                yield text
                break


def _complaint(
    table: LatencyTable,
    shapes: Mapping[str, Shape],
    ranks: Mapping[str, int],
    kind: str,
    fused: bool,
) -> str | None:
    ratios = {
        name: table.seconds(shape, kind, ranks[name]) / table.seconds(shape, kind, None)
        for name, shape in shapes.items()
    }
    slow = [name for name, ratio in ratios.items() if ratio > TOLERATED]
    if not slow:
        return None
    worst = max(slow, key=lambda name: ratios[name])
    shape, rank = shapes[worst], ranks[worst]
    factored, dense = (table.seconds(shape, kind, r) * 1e6 for r in (rank, None))
    tokens = f"{table.tokens} token{'s' if table.tokens > 1 else ''}"
    return (
        f"{len(slow)} of {len(ranks)} factored layers are slower here than dense ones for "
        f"{tokens}{'' if fused else UNLESS} (worst {worst}, {shape[0]} x {shape[1]}, rank "
        f"{rank}: {factored:.1f} against {dense:.1f} us): {_REASONS[fused]}"
    )


def time_shapes(
    shapes: Iterable[Shape], kind: str, place: TimingSpec, context: RunContext
) -> LatencyTable:
    """Return the times of layers of these shapes, dense and as layer `kind`."""
    distinct = list(dict.fromkeys(shapes))
    times = {
        (shape, kind): distributed.run_on_main(
            partial(_times, shape, kind, place, context.cache)
        )
        for shape in context.progress(distinct, "timing layers", len(distinct))
    }
    return LatencyTable(times, place.tokens)


def _times(shape: Shape, kind: str, place: TimingSpec, cache: Cache) -> LayerTimes:
    path = cache.path("times", place.key() | {"shape": list(shape), "layer": kind})
    if (earlier := load_if_valid(path, _load)) is not None:
        return earlier
    found = layer_times(shape, kind, place)
    if path is not None:
        values = torch.tensor([found.dense, *found.seconds], dtype=torch.float64)
        ranks = torch.tensor(found.ranks)
        write_tensors(path, {"ranks": ranks, "seconds": values}, place.key())
    return found


def _load(path: Path) -> LayerTimes:
    tensors, _ = read_tensors(path)
    dense, *seconds = tensors["seconds"].tolist()
    return LayerTimes(dense, tuple(tensors["ranks"].tolist()), tuple(seconds))
