"""Equal time: what the layers of a row take on this machine, beside what was planned."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.inference import fuse
from spectrim.pipeline.timing import place_for
from spectrim.planning import Plan
from spectrim.recipe import Recipe
from spectrim.speed.planned import measured_share
from spectrim.surgery.rewrite import factored_layers
from spectrim.surgery.targets import Target


def times_of(
    model: PreTrainedModel, smaller: PreTrainedModel, plan: Plan, recipe: Recipe
) -> tuple[float, float]:
    """Planned and measured, shares of what the planned layers of the original `model` take.

    Measured with the layers of both, one after another, those of `smaller` fused, in the
    recipe's stored dtype; `smaller` is then no longer of use for anything else.
    """
    place = place_for(recipe)
    fused: nn.Module = smaller
    fused.to(place.device, place.dtype)
    if any(True for _ in factored_layers(fused)):
        fuse(fused)
    targets = [Target(name, layer.shape) for name, layer in plan.layers.items()]
    dense = _layers(model, targets).to(place.device, place.dtype)
    with torch.inference_mode():
        measured = measured_share(dense, fused, targets, place)
    return plan.provenance["latency"]["predicted"], measured


def _layers(model: nn.Module, targets: list[Target]) -> nn.Module:
    """Copies under the same names, and nothing else of the model."""
    found = nn.Module()
    for target in targets:
        *parents, last = target.name.split(".")
        place = found
        for name in parents:
            if name not in place._modules:
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        place.add_module(last, copy.deepcopy(model.get_submodule(target.name)))
    return found
