"""The inputs of a sequential refinement, and the options common to all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.errors import InputError, ModelError
from spectrim.layers import FactoredLinear
from spectrim.models.hooks import evaluation_mode
from spectrim.models.replace import factored_layers, shared_bases
from spectrim.runtime.context import RunContext
from spectrim.statistics import Calibration
from spectrim.training.forward import Precision, Tokens
from spectrim.training.inputs import TrainingInputs

REQUIRES = ("gradient_covariance",)
Layers = dict[str, FactoredLinear]


@dataclass(frozen=True)
class SequentialOptions:
    """Options of every sequential refinement.

    Attributes:
        out_metric: "gradient", errors weighted by the loss's curvature, or "identity", all
            outputs alike.
        damping: of the covariances, relative to their mean diagonal.
        batch_size: sequences per forward pass.
        precision: of the forward passes, "float32" or "bfloat16".
    """

    out_metric: Literal["gradient", "identity"] = "gradient"
    damping: float = 1e-3
    batch_size: int = 4
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1 or self.batch_size < 1:
            raise InputError(
                "damping has to lie between 0 and 1 and batch_size to be positive, "
                f"got {self.damping} and {self.batch_size}"
            )


def requires(options: SequentialOptions) -> tuple[str, ...]:
    """Return the statistics of the original that these options make use of."""
    return REQUIRES if options.out_metric == "gradient" else ()


@dataclass(frozen=True)
class SequentialInputs:
    """One sequential refinement by name, with everything that its `refine` was given."""

    name: str
    inputs: TrainingInputs
    options: SequentialOptions
    context: RunContext

    @property
    def original(self) -> PreTrainedModel:
        return self.inputs.original

    @property
    def compressed(self) -> PreTrainedModel:
        return self.inputs.compressed

    @property
    def calibration(self) -> Calibration | None:
        """Return the gradient covariances, where the output metric uses them."""
        return self.inputs.statistics if requires(self.options) else None

    @cached_property
    def tokens(self) -> Tokens:
        return Tokens(self.inputs.blocks, self.compressed.device, self.options.precision)

    def check(self) -> None:
        if requires(self.options) and self.calibration is None:
            raise InputError(
                f"{self.name} with out_metric 'gradient' needs the gradient covariances of the "
                "original as statistics, as `spectrim.refine` gives them, or set out_metric to "
                "'identity'"
            )

    @contextmanager
    def evaluating(self) -> Iterator[Layers]:
        """Keep both models in evaluation mode; yield the factored layers as they stand."""
        with evaluation_mode(self.original), rewritable_layers(self.compressed) as layers:
            yield layers

    def key(self, layers: Layers) -> dict[str, Any]:
        """Return all that the result depends on."""
        statistics = self.calibration
        digest = None if statistics is None else statistics.digest(layers, REQUIRES)
        return self.inputs.key(self.name, self.options) | {"statistics": digest}


@contextmanager
def rewritable_layers(model: nn.Module) -> Iterator[Layers]:
    """Yield the layers to rewrite as they stand, by name, with `model` in evaluation mode.

    They are the factored ones that store any factors of their rank without loss, each by
    itself. After an error they stand there again. Raises ModelError for a model that has
    none, or that is not in float32.
    """
    together = {name for group in shared_bases(model).values() for name in group}
    layers = {
        name: layer
        for name, layer in factored_layers(model)
        if layer.LOSSLESS and name not in together
    }
    _check(model, layers)
    with evaluation_mode(model):
        try:
            yield layers
        except BaseException:
            put_back(model, layers)
            raise


def put_back(model: nn.Module, layers: Layers) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def _check(model: nn.Module, layers: Layers) -> None:
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no factored layer that can be rewritten by itself; "
            "compress it with layers of the kind lowrank or pivoted first"
        )
    for name, layer in layers.items():
        dtype = next(layer.parameters()).dtype
        if dtype != torch.float32:
            raise ModelError(
                f"{name} is in {dtype}; refine a model in float32 (`model.float()`) "
                "and cast it afterward"
            )
