"""`I = -g + 1/2 h` in relative coordinates, h by K Rademacher probes: BSI as published.

    h ~= 1/K sum_k z_k * (g(eps z_k) - g(-eps z_k)) / (2 eps),   g(theta) = dL/dtheta,
    c = c0 (1 + theta)

z_k is drawn over all bases of all layers at once; both members of a pair see the same rows. The
variance of h_i is `1/K sum_{j != i} H_ij^2`, the bias O(eps^2). With `control` = kronecker the
probes only estimate what the Kronecker curvature B of each layer leaves,

    h ~= beta diag(B) + 1/K sum_k z_k * (H z_k - beta B z_k),   B = (R^T C_x R) * (L^T C_g L),

beta in [0, 1] by least squares for each layer: the variance is then that of `H - beta B`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spectrim.data.tasks import TaskBatch
from spectrim.errors import InputError
from spectrim.pruning.coordinate_statistics import gradient_pass, moments
from spectrim.pruning.importance._importance import (
    Importance,
    Negative,
    clip_curvature,
    coordinates_of,
    standard_error,
    taylor,
)
from spectrim.pruning.importance._probing import probe, rounding_step
from spectrim.pruning.objective import Objective
from spectrim.pruning.sampled_labels import Use, check_temperature, sample_labels
from spectrim.pruning.spectral import SpectralLinear

REFERENCE = "BSI, 2026, arXiv:2605.01627"
Samples = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Options:
    """probes K; step eps (None: the smallest total error for the model's dtype).

    rows_per_probe: each pair sees so many of the objective's rows, in turn; None: all. Most of
    the noise is that of the probes, not of the data: many probes on a row each cost the same
    as few on many, and tell more. temperature: of labels drawn for the curvature (see
    `spectrim.pruning.sampled_labels`), None for the data's.
    """

    probes: int = 16
    step: float | None = None
    rows_per_probe: int | None = None
    negative: Negative = "zero"
    control: Literal["none", "kronecker"] = "none"
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        least = min(self.probes, self.rows_per_probe or 1)
        if least < 1 or (self.step is not None and self.step <= 0):
            raise InputError(
                f"probes {self.probes}, rows_per_probe {self.rows_per_probe} and step "
                f"{self.step} have to be above zero"
            )


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: Options,
) -> Importance:
    """At most 2 K + 1 gradient passes. Raises InputError for a 16-bit model."""
    probing = _softened(model, objective, options, "hessian")
    products, signs = _probed(model, layers, probing, options)
    gradients, curvature_of = _exact_part(model, layers, objective, options)
    scores, errors, slopes = {}, {}, {}
    for name, layer in layers.items():
        samples, fixed = curvature_of(name, products[name], signs[name])
        curvature = clip_curvature(fixed + samples.mean(0), options.negative)
        relative = coordinates_of(layer) * gradients[name]
        scores[name] = taylor(torch.ones_like(curvature), relative, curvature)
        slopes[name] = -relative
        errors[name] = 0.5 * standard_error(samples)
    share = min(1.0, (options.rows_per_probe or len(objective.rows)) / len(objective.rows))
    passes = 1 + 2 * options.probes * share
    extra = options.control != "none" and options.temperature is not None
    return Importance(scores, passes + extra, errors, gradient_terms=slopes)


def _probed(
    model: nn.Module, layers: dict[str, SpectralLinear], objective: Objective, options: Options
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """H z_k and z_k in relative coordinates, each (K, k) by layer."""
    dtype = next(iter(layers.values())).coordinates.value.dtype
    step = options.step or rounding_step(dtype)
    steps = {name: torch.full((layer.bases,), step) for name, layer in layers.items()}
    seen = _seen(objective, options)
    found = probe(model, layers, objective, steps, seen, options.seed)
    return {name: one / step for name, one in found.products.items()}, found.signs


def _seen(objective: Objective, options: Options) -> list[list[TaskBatch]]:
    """Return the batches of each probe: all of the objective's, or its rows in turn."""
    count = options.rows_per_probe
    if count is None or count >= len(objective.rows):
        return [list(objective.batches())] * options.probes
    starts = (probe * count for probe in range(options.probes))
    turns = (torch.arange(start, start + count) % len(objective.rows) for start in starts)
    return [
        [objective.rows.batch(rows) for rows in turn.split(objective.batch_size)]
        for turn in turns
    ]


def _softened(model: nn.Module, objective: Objective, options: Options, use: Use) -> Objective:
    """Return the objective on labels drawn from the model, if the options ask for them."""
    if options.temperature is None:
        return objective
    return sample_labels(model, objective, options.temperature, options.seed, use)


def _exact_part(
    model: nn.Module, layers: dict[str, SpectralLinear], objective: Objective, options: Options
) -> tuple[dict[str, Tensor], Samples]:
    """Return the gradient, and what makes curvature samples of products and signs."""
    if options.control == "none":
        values = [layer.coordinates.value for layer in layers.values()]
        found = [gradient.cpu() for gradient in objective.gradients(model, values)[0]]
        return dict(zip(layers, found, strict=True)), _plain_samples
    grams = {name: _Grams.zeros(layer.bases) for name, layer in layers.items()}
    receivers = {name: gram.add for name, gram in grams.items()}
    squared = _softened(model, objective, options, "squares")
    scored = max(1, gradient_pass(model, layers, squared, receivers))
    gradients = {name: gram.product / scored for name, gram in grams.items()}
    if squared is not objective:
        found_moments = moments(model, layers, objective)
        gradients = {name: entry.gradient for name, entry in found_moments.items()}

    def controlled(name: str, products: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
        c = coordinates_of(layers[name])
        control = grams[name].curvature(scored) * torch.outer(c, c)
        return _controlled_samples(control, products, signs)

    return gradients, controlled


def _plain_samples(name: str, products: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    return signs * products, torch.zeros_like(products[0])


def _controlled_samples(
    control: Tensor, products: Tensor, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return samples (K, k) of the diagonal of H - beta B, and beta diag(B)."""
    known = signs @ control
    size = float(known.square().sum())
    beta = min(max(float((products * known).sum()) / size, 0.0), 1.0) if size else 0.0
    return signs * (products - beta * known), beta * control.diagonal()


@dataclass
class _Grams:
    """sum a a^T and sum d d^T, both (k, k), sum a d (k,), and the tokens."""

    inputs: Tensor
    outputs: Tensor
    product: Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, count: int) -> _Grams:
        square = torch.zeros(count, count, dtype=torch.float64)
        return cls(square, square.clone(), square[0].clone())

    def add(self, projections: Tensor, gradients: Tensor) -> None:
        self.inputs += (projections.T @ projections).double().cpu()
        self.outputs += (gradients.T @ gradients).double().cpu()
        self.product += (projections * gradients).sum(0, dtype=torch.float64).cpu()
        self.tokens += len(projections)

    def curvature(self, scored: int) -> Tensor:
        return self.inputs * self.outputs / max(1, self.tokens) / scored
