"""Times of a plan's layers on this machine, measured once and kept in the workspace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from spectrim.allocation import LatencyRecipe, LatencyTable, LayerTimes
from spectrim.pipeline.progress import Track, silent
from spectrim.planning import Decomposition, Plan
from spectrim.recipe import Recipe
from spectrim.speed.layer_times import Place, layer_times
from spectrim.speed.random_models import is_timed
from spectrim.storage import read_tensors, write_tensors
from spectrim.workspace import Workspace, kept

TOLERATED = 1.05
"""By how much slower than dense a layer may be measured before anyone is told."""
Shape = tuple[int, int]


def timetable(
    decomposition: Decomposition,
    recipe: Recipe,
    workspace: Workspace | None = None,
    track: Track = silent,
) -> LatencyTable:
    """Times of every shape that the decomposition has, dense and as the recipe's layer kind,
    for the recipe's tokens (one by default). Raises InputError for a kind that is not timed."""
    shapes = [s for n, s in decomposition.shapes.items() if n not in decomposition.groups]
    return _table(shapes, recipe, workspace or Workspace(None), track)


def slow_layers(
    plan: Plan, recipe: Recipe, workspace: Workspace | None = None, track: Track = silent
) -> Iterator[str]:
    """What to say about factored layers that are slower here than the dense ones: a text, or
    none. Layers of kinds that are not timed, and those on shared bases, are not looked at."""
    single = {n: layer for n, layer in plan.layers.items() if not layer.members}
    ranks = {n: layer.rank for n, layer in single.items() if layer.rank is not None}
    if not ranks or not is_timed(plan.layer):
        return
    shapes = {name: single[name].shape for name in ranks}
    wanted = recipe.with_changes(layer=plan.layer, layer_options={})
    table = _table(shapes.values(), wanted, workspace or Workspace(None), track)
    ratios = {
        name: table.seconds(shape, plan.layer, ranks[name])
        / table.seconds(shape, plan.layer, None)
        for name, shape in shapes.items()
    }
    slow = [name for name, ratio in ratios.items() if ratio > TOLERATED]
    if not slow:
        return
    worst = max(slow, key=lambda name: ratios[name])
    shape, rank = shapes[worst], ranks[worst]
    factored, dense = (table.seconds(shape, plan.layer, r) * 1e6 for r in (rank, None))
    yield (
        f"{len(slow)} of {len(ranks)} factored layers take longer here than dense ones for "
        f"{table.tokens} token{'s' if table.tokens > 1 else ''}, worst {worst} ({shape[0]} x "
        f"{shape[1]}, rank {rank}): {factored:.1f} against {dense:.1f} microseconds. It has "
        f"fewer numbers, but two products in place of one, each too small to make up for the "
        "second call; lower the budget, leave such layers dense (--exclude), or plan by time "
        "(--budget-latency)"
    )


def _table(
    shapes: Iterable[Shape], recipe: Recipe, workspace: Workspace, track: Track
) -> LatencyTable:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = (recipe.latency or LatencyRecipe()).tokens
    dtype = getattr(torch, recipe.save_dtype or "float32")
    place, distinct = Place(device, dtype, tokens), list(dict.fromkeys(shapes))
    times = {
        (shape, recipe.layer): _times(shape, recipe.layer, place, workspace)
        for shape in track(distinct, "timing layers", len(distinct))
    }
    return LatencyTable(times, tokens)


def _times(shape: Shape, kind: str, place: Place, workspace: Workspace) -> LayerTimes:
    path = workspace.path("times", place.key() | {"shape": list(shape), "layer": kind})
    if (earlier := kept(path, _load)) is not None:
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
