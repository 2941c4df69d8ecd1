"""Price the removal of experts: which go first in each block, and what that costs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.calibration import CalibrationSettings
from spectrim.calibration.in_memory import Batch
from spectrim.calibration.routed_tokens import RoutedTokens, few_enough, routed_tokens
from spectrim.errors import InputError, ModelError, NumericalWarning
from spectrim.models.expert_removal import Routing, find_routings
from spectrim.models.targets import find_targets
from spectrim.models.usage import listed
from spectrim.pipeline.calibration_defaults import batch_tokens
from spectrim.pipeline.inputs import calibration_blocks, prepare
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition
from spectrim.planning.experts import ExpertCurve, expert_of
from spectrim.planning.probe_tokens import first_tokens
from spectrim.pruning.experts import EXPERT_ORDERS
from spectrim.runtime.context import RunContext

_OBSERVED = 256
"""Tokens of the run that shows how experts are called."""


def check_experts(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe, context: RunContext
) -> dict[str, Routing]:
    """Return the routings of the experts that can be removed; warn of the others.

    Fused experts of the model are split in place. Raises ModelError if there are none.
    """
    targets = {target.name for target in prepare(model, recipe, context.cache).targets}
    tokens = first_tokens(calibration_blocks(model, tokenizer, recipe), _OBSERVED)
    ids = tokens.ids.to(next(model.parameters()).device)

    @torch.no_grad()
    def run() -> None:
        model(input_ids=ids, use_cache=False)

    routings, others = find_routings(model, run)
    partly = [name for name in routings if not _layers(model, name) <= targets]
    routings = {name: each for name, each in routings.items() if name not in partly}
    if not routings:
        raise ModelError(
            f"{type(model).__name__} has no experts that can be removed: it needs experts that "
            "spectrim compresses, with a router that chooses among more than a token takes; "
            "leave 'experts' out of the recipe"
        )
    if stay := [*others, *partly]:
        warnings.warn(
            f"{listed(stay)}: no expert is removed, since not all of their layers are "
            "compressed or their router is not known to follow",
            NumericalWarning,
            stacklevel=2,
        )
    return routings


def price_experts(
    model: PreTrainedModel,
    tokenizer: Any,
    decomposition: Decomposition,
    recipe: Recipe,
    context: RunContext | None = None,
) -> Decomposition:
    """Return the decomposition with a curve of removed experts for each block.

    Raises ModelError for a model without experts that can be removed.
    """
    experts, context = recipe.experts, context or RunContext()
    if experts is None:
        return decomposition
    if decomposition.units == "own" and experts.cut_ranks:
        raise InputError(
            "ranks and experts share a budget by loss, and these curves are not in nats; use a "
            "method with gradients such as obd, or set experts.cut_ranks=false"
        )
    module = EXPERT_ORDERS.get(experts.order)
    options = EXPERT_ORDERS.options(experts.order, experts.order_options)
    curves = {}
    for name, tokens in _routed(model, tokenizer, recipe, context).items():
        order = module.order(tokens, options)
        losses = tuple(tokens.prices(order))
        routing = tokens.routing
        curves[name] = ExpertCurve(routing.router, routing.count, tuple(order), losses)
    return replace(decomposition, experts=curves)


def _routed(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe, context: RunContext
) -> dict[str, RoutedTokens]:
    assert recipe.experts is not None
    routings = check_experts(model, tokenizer, recipe, context)
    blocks = calibration_blocks(model, tokenizer, recipe, cache=context.cache)
    wanted = recipe.experts.tokens or few_enough(model, routings, blocks.tokens)
    blocks, given = first_tokens(blocks, wanted), recipe.calibration
    settings = CalibrationSettings(
        (),
        given.labels,
        given.tokens_per_batch or batch_tokens(model, find_targets(model)),
        given.seed or 0,
        given.temperature,
    )

    def track(batches: Iterator[Batch]) -> Iterator[Batch]:
        size = max(1, settings.tokens_per_batch // blocks.ids.shape[1])
        return iter(context.progress(batches, "pricing experts", -(-len(blocks) // size)))

    return routed_tokens(model, routings, blocks, settings, track)


def _layers(model: nn.Module, experts: str) -> set[str]:
    names = (name for name, _ in model.named_modules())
    return {n for n in names if (place := expert_of(n)) is not None and place[0] == experts}
