"""Latency of a plan, predicted against measured.

predicted = sum_l time_l(r_l) / sum_l time_l(dense)     from the table of each shape alone
measured  = the same layers of the whole model, one after another, alternating fused and dense
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.allocation import (
    ALLOCATORS,
    AllocationRequest,
    LatencyTable,
    LayerCurve,
    TimedRequest,
)
from spectrim.evaluation.speed.layer_times import TimingSpec, layer_times
from spectrim.evaluation.speed.random_models import random_layer
from spectrim.evaluation.speed.timing import Run, time_interleaved
from spectrim.inference import fuse
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.replace import replace_layer
from spectrim.models.targets import Target, find_targets

ROUNDS = 15


@dataclass(frozen=True)
class PlannedTime:
    """Shares of the dense layers' time. dense_layers: how many the plan left dense."""

    budget: float
    predicted: float
    measured: float
    layers: int
    dense_layers: int


def time_plan(
    model: PreTrainedModel,
    budget: float,
    tokens: int = 1,
    kind: str = "lowrank",
    multiple: int = 8,
) -> PlannedTime:
    """Plan `model` by time, at the losses of plain SVD, and time the result.

    Raises InputError for a budget that no ranks meet, and a layer type that cannot be timed.
    """
    targets, parameter = find_targets(model), next(model.parameters())
    place = TimingSpec(parameter.device, parameter.dtype, tokens)
    shapes = dict.fromkeys(target.shape for target in targets)
    times = {(shape, kind): layer_times(shape, kind, place) for shape in shapes}
    request = AllocationRequest(_curves(model, targets), budget, kind, multiple)
    timed = TimedRequest.of(request, budget, LatencyTable(times, tokens))
    options = ALLOCATORS.options("loss_optimal", {})
    ranks = ALLOCATORS.get("loss_optimal").allocate(timed, options)
    smaller = _with_ranks(model, targets, kind, ranks)
    fuse(smaller)
    return PlannedTime(
        budget,
        timed.facts(ranks)["latency"]["predicted"],
        measure_share(model, smaller, targets, place),
        len(targets),
        sum(rank is None for rank in ranks.values()),
    )


def _with_ranks(
    model: PreTrainedModel,
    targets: Sequence[Target],
    kind: str,
    ranks: Mapping[str, int | None],
) -> PreTrainedModel:
    """Return a copy with random layers of these ranks."""
    smaller = copy.deepcopy(model)
    for target in targets:
        if (rank := ranks[target.name]) is not None:
            bias = get_bias(model.get_submodule(target.name)) is not None
            replace_layer(smaller, target.name, random_layer(target.shape, kind, rank, bias))
    return smaller


@torch.inference_mode()
def measure_share(
    dense: nn.Module, smaller: nn.Module, targets: Sequence[Target], place: TimingSpec
) -> float:
    """Return the time of the layers `targets` of `smaller`, divided by that of `dense`'s."""
    inputs = [
        torch.zeros(1, place.tokens, target.shape[1], dtype=place.dtype, device=place.device)
        for target in targets
    ]

    def one_after_another(model: nn.Module) -> Run:
        layers = [model.get_submodule(target.name) for target in targets]

        def run() -> None:
            for layer, x in zip(layers, inputs, strict=True):
                layer(x)

        return run

    runs = {"dense": one_after_another(dense), "smaller": one_after_another(smaller)}
    return 1 / time_interleaved(runs, ROUNDS, place.device).speedup("smaller", "dense")


def _curves(model: PreTrainedModel, targets: Sequence[Target]) -> tuple[LayerCurve, ...]:
    found = []
    for target in targets:
        weight = get_weight(model.get_submodule(target.name)).detach().float()
        spectrum = torch.linalg.svdvals(weight).double().cpu().numpy()
        energy = spectrum**2
        tails = np.append(energy[::-1].cumsum()[::-1], 0.0)
        found.append(LayerCurve(target.name, target.shape, tails / 2, spectrum))
    return tuple(found)
