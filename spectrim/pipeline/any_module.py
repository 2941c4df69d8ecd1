"""Compress any module for any loss: calibrate, decompose, plan, replace.

    batches, loss -> statistics -> factors with their curves -> ranks -> layers

For encoders, classifiers, rankers: only the loss defines the task. A loss that is minimal at
the model itself, like agreement with its own outputs, has no gradient there; `agreement_loss`
draws labels around the outputs instead, whose gradients have the right covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from spectrim.calibration.any_loss import Loss, Mask, calibrate_module
from spectrim.calibration.embedding import sum_lookups
from spectrim.decompositions import TABLE_METHODS, TableProblem, decompose_table, table_rank
from spectrim.errors import InputError
from spectrim.layers import FactoredEmbedding
from spectrim.models.replace import replace_layer, share_tied_layers
from spectrim.models.targets import find_targets
from spectrim.pipeline import compatibility
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.plan import plan
from spectrim.pipeline.recipe import EmbeddingRecipe, Recipe
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import Decomposition, Plan
from spectrim.statistics import TableStatistics

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class CompressedModule(Generic[M]):
    """The smaller module, the ranks of its layers, and those of its tables, by name."""

    model: M
    plan: Plan
    tables: dict[str, int]


@torch.inference_mode(False)
@torch.enable_grad()
def compress_any(
    model: M,
    batches: Iterable[Any],
    loss: Loss,
    recipe: Recipe | None = None,
    mask: Mask | None = None,
) -> CompressedModule[M]:
    """Return a smaller copy of `model`, compressed for `loss(model, batch) -> (n,)`.

    With `recipe.embeddings` every lookup table is factored too, at that budget. For a latency
    budget the layers are timed.

    Args:
        model: any module with linear layers.
        batches: an iterable that can be iterated twice.
        loss: the loss per example.
        recipe: its calibration, Hessian averaging and probing are ignored.
        mask: mask(batch) is True on real positions (B, T); several, of other T each, for a
            model of two sides.

    Raises:
        InputError, ModelError, NumericalError: as the steps do.
    """
    recipe = recipe or Recipe()
    if recipe.embeddings is not None and isinstance(batches, Iterator):
        raise InputError(
            "embedding tables need a second pass: give a list of batches, not an iterator"
        )
    decomposition = factorize_any(model, batches, loss, recipe, mask)
    chosen = plan(decomposition, recipe)
    smaller = replace_layers(model, decomposition, chosen)
    tables = {}
    if recipe.embeddings is not None:
        tables = compress_tables(model, smaller, batches, loss, recipe.embeddings)
    return CompressedModule(smaller, chosen, tables)


@torch.inference_mode(False)
@torch.enable_grad()
def factorize_any(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    recipe: Recipe | None = None,
    mask: Mask | None = None,
) -> Decomposition:
    """Return the factors of every target layer, with predicted losses per example.

    Layers without gradients stay dense. Raises InputError for recipes that a module cannot
    follow.
    """
    recipe = recipe or Recipe()
    compatibility.check(recipe, compatibility.ANY_MODEL)
    share_tied_layers(model)
    targets = find_targets(model, recipe.include, recipe.exclude)
    calibration = calibrate_module(model, targets, batches, loss, recipe.statistics, mask)
    return decompose(model, calibration, recipe)


def agreement_loss(outputs: Callable[[nn.Module, Any], Tensor], seed: int = 0) -> Loss:
    """Return the disagreement loss 1/2 ||f(x) - y||^2 with new y ~ N(f(x), 1) each time.

    outputs(model, batch) -> (n, d). For embeddings of unit length the change of
    1/2 ||f - f_0||^2 is that of 1 - cos. E[g g^T] is J^T J, the curvature of agreement at the
    original, where its own gradient is zero.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = outputs(model, batch)
        noise = torch.randn(found.shape, generator=generator, dtype=torch.float32)
        drawn = found.detach() + noise.to(found)
        return 0.5 * (found - drawn).square().flatten(1).sum(1)

    return loss


def compress_tables(
    model: nn.Module,
    smaller: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    given: EmbeddingRecipe,
) -> dict[str, int]:
    """Replace the tables of `smaller` by factors of those of `model`; return their ranks.

    Tables with fewer rows than the budget's smallest factors stay, and so do those with a
    padding row, a norm or sparse gradients. Raises InputError if none is left.
    """
    options = TABLE_METHODS.options(given.method, given.options)
    ranks = _table_ranks(model, given)
    if not ranks:
        raise InputError(f"no lookup table gets smaller at a budget of {given.budget:g}")
    tables: dict[str, Any] = {name: model.get_submodule(name) for name in ranks}
    for name, sums in sum_lookups(model, tables, batches, loss).items():
        weight = tables[name].weight.detach().double()
        problem = TableProblem(weight, False, TableStatistics.from_sums(sums))
        table = decompose_table(given.method, problem, options)
        replace_layer(smaller, name, table.module(ranks[name]))
    return ranks


def _table_ranks(model: nn.Module, given: EmbeddingRecipe) -> dict[str, int]:
    ranks = {}
    for name, module in model.named_modules():
        if type(module) is not nn.Embedding or _special(module):
            continue
        shape = (module.num_embeddings, module.embedding_dim)
        try:
            rank = table_rank(shape, given.budget)
        except InputError:
            continue
        if FactoredEmbedding.cost(*shape, rank) < shape[0] * shape[1]:
            ranks[name] = rank
    return ranks


def _special(table: nn.Embedding) -> bool:
    return table.max_norm is not None or table.sparse
