"""`W = left right`: plain factors of a fixed rank from the first step on.

Every linear layer of the blocks begins as the truncated SVD of its own initialization, balanced
(`left^T left = right right^T`), and stays at rank r: weights, gradients and optimizer state
shrink alike, and the checkpoint is a factored one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrim.errors import InputError
from spectrim.layers.lowrank import LowRankLinear
from spectrim.models.replace import replace_layer
from spectrim.training.balanced_factors import balance
from spectrim.training.pretraining._job import Job, rank_for

REFERENCE = "Wang et al., 2021 (Pufferfish), arXiv:2103.03936"


@dataclass(frozen=True)
class Options:
    """rank_fraction: the rank as a share of a layer's shorter side."""

    rank_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.rank_fraction <= 1:
            raise InputError(f"rank_fraction is {self.rank_fraction}; it lies in (0, 1]")


def train(job: Job, options: Options) -> dict[str, dict[str, Any]]:
    """Train factors. Raises NumericalError naming a step that is not finite."""
    entries: dict[str, dict[str, Any]] = {}
    for name, layer in list(job.layers()):
        rank = rank_for(layer, options.rank_fraction)
        left, right = balance(layer.weight.detach().double(), rank)
        factored = LowRankLinear.from_factors(left, right, layer.bias)
        replace_layer(job.model, name, factored)
        entries[name] = {"kind": "lowrank", "rank": rank}
    job.train()
    return entries
