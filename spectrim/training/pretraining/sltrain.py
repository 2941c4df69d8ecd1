"""`W = left right + S`: plain factors and a fixed random 3% of free entries.

The layer type is `sparse_plus_lowrank`. `right` begins as a linear layer does, `left` at zero,
the free entries uniform in +-1 / sqrt(in), so that the start has full rank. The source's factor
alpha / r before `left right` is not stored: with Adam it would only scale the steps of `left`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectrim.layers.sparse_plus_lowrank import SparsePlusLowRankLinear, random_columns
from spectrim.models.replace import replace_layer
from spectrim.training.pretraining._job import Job, rank_for, uniform
from spectrim.training.pretraining.lowrank import Options as LowRankOptions

REFERENCE = "Han et al., 2024, arXiv:2406.02214"


@dataclass(frozen=True)
class Options(LowRankOptions):
    """rank_fraction: the rank as a share of a layer's shorter side."""


def train(job: Job, options: Options) -> dict[str, dict[str, Any]]:
    """Train factors and free entries. Raises NumericalError naming a bad step."""
    entries: dict[str, dict[str, Any]] = {}
    for number, (name, layer) in enumerate(list(job.layers())):
        rank = rank_for(layer, options.rank_fraction)
        seed = job.schedule.seed * 4099 + number
        replace_layer(job.model, name, initial_layer(layer, rank, seed))
        entries[name] = {"kind": "sparse_plus_lowrank", "rank": rank}
    job.train()
    return entries


def initial_layer(layer: nn.Linear, rank: int, seed: int) -> SparsePlusLowRankLinear:
    """Return the layer at its start: `left` is zero, and W = S."""
    shape = layer.out_features, layer.in_features
    columns, bound = random_columns(shape, seed), layer.in_features**-0.5
    generator = torch.Generator().manual_seed(seed)
    right = uniform((rank, layer.in_features), bound, generator)
    values = uniform((len(columns), columns.shape[1]), bound, generator)
    left = torch.zeros(layer.out_features, rank, dtype=torch.float64)
    bias = None if layer.bias is None else layer.bias.detach().cpu()
    return SparsePlusLowRankLinear.of((left, right), bias, values, columns)
