"""Groups of layers of equal input width that share a basis, by the recipe's rule.

No projection name is built in. A layer's type is its name inside its decoder block, and the
layers that share by default across blocks are those that read a normalized hidden state: their
input is the very tensor that a normalization (a leaf module with vectors as parameters) output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.decompositions import DECOMPOSITIONS, whitened
from spectrim.errors import InputError
from spectrim.linalg.basis_grouping import affinity_distance, agglomerate, coding_distance
from spectrim.linalg.joint_basis import ESTIMATES, clusters
from spectrim.models.hooks import attach_hooks
from spectrim.models.linear import get_shape, is_linear
from spectrim.models.targets import decoder_blocks
from spectrim.pipeline.recipe import Recipe, SharingRecipe
from spectrim.planning.solver import layer_problem, pool_inputs
from spectrim.statistics import Calibration

Groups = list[tuple[str, ...]]
_BY_PROPOSAL = ("affinity", "coding_rate")
_BY_ERROR = ("clustered", *_BY_PROPOSAL)
"""Rules whose groups an error decides on; for two of them likeness proposes the groups."""


def group_layers(
    model: nn.Module, calibration: Calibration, names: Sequence[str], recipe: Recipe
) -> Groups:
    """Return all of `names` in order, alone or in groups at the place of their first member.

    Raises InputError if the rule finds no layers to share.
    """
    if recipe.sharing.rule == "none":
        return [(name,) for name in names]
    pools = _pools(model, calibration, names, recipe.sharing)
    if recipe.sharing.rule in _BY_ERROR:
        found = [g for pool in pools for g in _clustered(model, calibration, pool, recipe)]
    else:
        found = [g for pool in pools for g in _windows(pool, recipe.sharing)]
    first = {group[0]: group for group in found if len(group) > 1}
    inside = {name for group in first.values() for name in group}
    return [first.get(n, (n,)) for n in names if n in first or n not in inside]


def _pools(
    model: nn.Module,
    calibration: Calibration,
    names: Sequence[str],
    sharing: SharingRecipe,
) -> Groups:
    """Return layers of equal input width that the rule may put together, in model order."""
    types = _types(model, names)
    wanted = [name for name in types if _is_wanted(types[name], sharing.patterns)]
    if sharing.rule == "adjacent" and not sharing.patterns:
        readers = normalized_readers(model, wanted)
        wanted = [name for name in wanted if name in readers]
    pools: dict[Any, list[str]] = {}
    for name in wanted:
        key: Any = calibration.groups[name] if sharing.rule == "same_input" else types[name]
        if sharing.rule in _BY_PROPOSAL:
            key = _pool_of(name, types[name])
        pools.setdefault((key, get_shape(model.get_submodule(name))[1]), []).append(name)
    found = [tuple(pool) for pool in pools.values() if len(pool) > 1]
    if not found:
        raise InputError(
            f"sharing.rule {sharing.rule} finds no two layers that may share a basis among "
            f"{len(names)}; name them with sharing.patterns, or use another rule"
        )
    return found


def _pool_of(name: str, kind: str) -> tuple[str, str]:
    """Return what layers may be grouped: one type in all blocks, experts inside of a block."""
    numbered = re.sub(r"\b\d+\b", "*", kind)
    return numbered, "" if numbered == kind else name.removesuffix(kind)


def _types(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return each layer's name inside its decoder block, for layers in blocks."""
    prefixes = [f"{name}." for name, _ in decoder_blocks(model)]
    found: dict[str, str] = {}
    for name in names:
        inside = [name.removeprefix(p) for p in prefixes if name.startswith(p)]
        found |= {name: inside[0]} if inside else {}
    return found


def _is_wanted(kind: str, patterns: Sequence[str]) -> bool:
    try:
        return not patterns or any(re.search(pattern, kind) for pattern in patterns)
    except re.error as error:
        raise InputError(f"sharing.patterns {list(patterns)}: {error}") from error


def _windows(pool: Sequence[str], sharing: SharingRecipe) -> Groups:
    if sharing.rule == "same_input":
        return [tuple(pool)]
    starts = range(0, len(pool), sharing.group_size)
    return [tuple(pool[start : start + sharing.group_size]) for start in starts]


def _clustered(
    model: nn.Module, calibration: Calibration, pool: Sequence[str], recipe: Recipe
) -> Groups:
    """Cluster the pool. Memory: its weights in float64."""
    sharing = recipe.sharing
    options = DECOMPOSITIONS.options(recipe.method, recipe.method_options)
    problems = pool_inputs([layer_problem(model, calibration, name) for name in pool])
    matrices = whitened(recipe.method, problems, options)
    estimate = partial(_joint_error, matrices, sharing)
    if sharing.rule in _BY_PROPOSAL:
        found = _proposed(matrices, sharing, estimate)
    else:
        found = clusters(matrices, estimate, sharing.max_error, sharing.group_size)
    return [tuple(pool[index] for index in cluster) for cluster in found]


def _proposed(
    matrices: Sequence[Tensor],
    sharing: SharingRecipe,
    estimate: Callable[[Sequence[int]], float],
) -> Sequence[Sequence[int]]:
    """Merge the most alike matrices first, as long as the joint error allows it."""
    if sharing.rule == "affinity":
        rank = min(_rank_at(sharing, [matrix]) for matrix in matrices)
        distance = affinity_distance(matrices, rank)
    else:
        distance = coding_distance(matrices)
    allowed = lambda group: estimate(group) <= sharing.max_error  # noqa: E731
    return agglomerate(len(matrices), distance, allowed, sharing.group_size)


def _joint_error(
    matrices: Sequence[Tensor], sharing: SharingRecipe, chosen: Sequence[int]
) -> float:
    """Return the error at the rank of the group that keeps `sharing.budget` of its weights."""
    members = [matrices[index] for index in chosen]
    return ESTIMATES[sharing.error_estimate](members, _rank_at(sharing, members))


def _rank_at(sharing: SharingRecipe, members: Sequence[Tensor]) -> int:
    """Return the rank at which one basis keeps `sharing.budget` of the weights."""
    rows, width = sum(len(member) for member in members), members[0].shape[1]
    return max(1, int(sharing.budget * rows * width / (rows + width)))


def normalized_readers(model: nn.Module, names: Sequence[str]) -> set[str]:
    """Return those of `names` whose input is the output of a normalization.

    They are found in one forward pass over two tokens.
    """
    given: dict[int, Tensor] = {}
    found: set[str] = set()

    def gave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given[id(output)] = output  # kept, so that no other tensor gets its id

    def reads(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if id(inputs[0]) in given:
            found.add(name)

    before = [(model.get_submodule(name), partial(reads, name)) for name in names]
    after = [(module, gave) for module in model.modules() if _is_norm(module)]
    ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    with attach_hooks(before, after), torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return found


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    leaf = next(module.children(), None) is None
    return leaf and not is_linear(module) and {p.dim() for p in parameters} == {1}
