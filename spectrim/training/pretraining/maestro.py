"""`W = left right` of full rank, trained so that every prefix is a model; ranks shrink.

Every step cuts one layer to a random prefix (`spectrim/training/ordered_dropout.py`); a penalty
on the tails of all factors lets what is not needed vanish. In the end a layer keeps the terms
before the first tail below `threshold` of the whole, as factors where these are smaller than
the dense weight. Terms are ordered: any shorter prefix is a model without decomposing again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectrim.errors import InputError
from spectrim.layers.lowrank import LowRankLinear
from spectrim.models.replace import replace_layer
from spectrim.training.balanced_factors import balance
from spectrim.training.ordered_dropout import OrderedDropout, needed_rank
from spectrim.training.pretraining._job import NAME, Job, dense_layer

REFERENCE = "Horvath et al., 2024, arXiv:2308.14929"


@dataclass(frozen=True)
class Options:
    """penalty: the weight of the tails' norms in the loss; threshold: of a tail to drop."""

    penalty: float = 1e-5
    threshold: float = 1e-2

    def __post_init__(self) -> None:
        if self.penalty < 0 or not 0 <= self.threshold < 1:
            raise InputError(
                "penalty cannot be negative and threshold lies in [0, 1), got "
                f"{self.penalty} and {self.threshold}"
            )


def train(job: Job, options: Options) -> dict[str, dict[str, Any]]:
    """Train nested factors. Raises NumericalError naming a step that is not finite."""
    layers: dict[str, LowRankLinear] = {}
    for name, layer in list(job.layers()):
        rank = min(layer.weight.shape)
        factors = balance(layer.weight.detach().double(), rank)
        layers[name] = LowRankLinear.from_factors(*factors, layer.bias)
        replace_layer(job.model, name, layers[name])
    dropout, run = OrderedDropout(layers, job.schedule.seed), job.start()

    def loss(rows: Tensor) -> Tensor:
        with dropout.cut(len(run.state.losses[NAME])):
            return job.loss(rows) + options.penalty * dropout.penalty()

    run.complete([job.stage(loss)], job.schedule)
    job.finish(run)
    return _shrink(job, layers, options.threshold)


def _shrink(
    job: Job, layers: dict[str, LowRankLinear], threshold: float
) -> dict[str, dict[str, Any]]:
    """Drop what is not needed; layers whose factors would be larger become dense."""
    entries: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        rank = needed_rank(layer, threshold)
        left, right = layer.left.weight.detach()[:, :rank], layer.right.weight.detach()[:rank]
        if rank * (len(left) + right.shape[1]) < len(left) * right.shape[1]:
            kept = LowRankLinear.from_factors(left, right, layer.left.bias)
            replace_layer(job.model, name, kept)
            entries[name] = {"kind": "lowrank", "rank": rank}
        else:
            replace_layer(job.model, name, dense_layer(left @ right, layer.left.bias))
    return entries
