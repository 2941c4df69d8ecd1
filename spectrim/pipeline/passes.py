"""The model that the passes of a calibration run: as it is or in shards, and cut to a plan."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from spectrim.calibration.distributed import set_sharded_layer, sharded_copy
from spectrim.models.linear import get_bias
from spectrim.planning import Decomposition, Plan
from spectrim.planning.probe import swap_weights


@contextmanager
def model_for_passes(model: nn.Module, fsdp: bool) -> Iterator[Any]:
    """Yield the model itself, or with `fsdp` a copy of which each process holds a share."""
    if not fsdp:
        yield model
        return
    yield sharded_copy(model)
    gc.collect()  # shards and their hooks hold each other


@contextmanager
def cut_model(
    model: nn.Module, decomposition: Decomposition, plan: Plan, fsdp: bool
) -> Iterator[Any]:
    """Yield the model for passes with the products of the plan's factors as weights."""
    factors, ranks = decomposition.expand_groups(plan.ranks)
    with ExitStack() as stack:
        passing = stack.enter_context(model_for_passes(model, fsdp))
        for name, rank in ranks.items():
            module = passing.get_submodule(name)
            if fsdp:
                bias = factors[name].bias(rank, get_bias(model.get_submodule(name)))
                set_sharded_layer(module, factors[name].weight(rank), bias)
            else:
                stack.enter_context(swap_weights(module, factors[name], rank))
        yield passing
