"""I = -g + 1/2 h in relative coordinates, h by K Rademacher probes: BSI as published.

    h ~= 1/K sum_k z_k * (g(eps z_k) - g(-eps z_k)) / (2 eps),   g(theta) = dL/dtheta,
    c = c0 (1 + theta)

z_k is drawn over all bases of all layers at once; both members of a pair see the same rows. The
variance of h_i is 1/K sum_{j != i} H_ij^2, the bias O(eps^2). With `control` = kronecker the
probes only estimate what the Kronecker curvature B of each layer leaves,

    h ~= beta diag(B) + 1/K sum_k z_k * (H z_k - beta B z_k),   B = (R^T C_x R) * (L^T C_g L),

beta in [0, 1] by least squares for each layer: the variance is then that of H - beta B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.selection.importance._importance import (
    Importance,
    Negative,
    coordinates_of,
    standard_error,
    taylor,
    treated,
)
from spectrim.selection.moments import gradient_pass, moments
from spectrim.selection.objective import Objective
from spectrim.selection.softened import Use, check_temperature, softened
from spectrim.selection.spectral import SpectralLinear

REFERENCE = "BSI, 2026, arXiv:2605.01627"
Samples = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
_ROUNDING = 3.0
"""A difference of gradients g with relative rounding u has error u |g| / eps + O(eps^2); the
sum is smallest near eps = (3 u)^(1/3)."""


@dataclass(frozen=True)
class Options:
    """probes K; step eps (None: the smallest total error for the model's dtype).

    batches_per_probe: each pair sees so many of the objective's batches, in turn; None: all.
    The noise is that of the probes, not of the data: many probes on little data each cost the
    same as few on much, and tell more. temperature: of labels drawn for the curvature (see
    `spectrim.selection.softened`), None for the data's.
    """

    probes: int = 16
    step: float | None = None
    batches_per_probe: int | None = None
    negative: Negative = "zero"
    control: Literal["none", "kronecker"] = "none"
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.probes < 1 or (self.step is not None and self.step <= 0):
            raise InputError(f"probes {self.probes} and step {self.step} have to be above zero")


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: Options,
) -> Importance:
    """At most 2 K + 1 gradient passes. Raises InputError for a 16-bit model."""
    probing = _softened(model, objective, options, "hessian")
    batches = list(probing.batches())
    products, signs = _probed(model, layers, probing, options)
    gradients, curvature_of = _exact_part(model, layers, objective, options)
    scores, errors, slopes = {}, {}, {}
    for name, layer in layers.items():
        samples, fixed = curvature_of(name, products[name], signs[name])
        curvature = treated(fixed + samples.mean(0), options.negative)
        relative = coordinates_of(layer) * gradients[name]
        scores[name] = taylor(torch.ones_like(curvature), relative, curvature)
        slopes[name] = -relative
        errors[name] = 0.5 * standard_error(samples)
    seen = min(options.batches_per_probe or len(batches), len(batches))
    passes = 1 + math.ceil(2 * options.probes * seen / len(batches))
    extra = options.control != "none" and options.temperature is not None
    return Importance(scores, passes + extra, errors, slopes=slopes)


def rounding_step(dtype: torch.dtype) -> float:
    """eps for a gradient computed in `dtype`, of which norms and rotations are in float32
    whatever the model's dtype. Raises InputError for 16 bits."""
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    if unit > 1e-4:
        raise InputError(
            f"differences of {dtype} gradients drown in rounding; load the model in float32"
        )
    return float((_ROUNDING * unit) ** (1 / 3))


def _probed(
    model: nn.Module, layers: dict[str, SpectralLinear], objective: Objective, options: Options
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """H z_k and z_k in relative coordinates, each (K, k) by layer."""
    values = [layer.coordinates.value for layer in layers.values()]
    before = [value.detach().clone() for value in values]
    step = options.step or rounding_step(values[0].dtype)
    products: dict[str, list[Tensor]] = {name: [] for name in layers}
    signs: dict[str, list[Tensor]] = {name: [] for name in layers}
    generator = torch.Generator().manual_seed(options.seed)
    batches = list(objective.batches())
    seen = min(options.batches_per_probe or len(batches), len(batches))
    try:
        for probe in range(options.probes):
            some = [batches[(probe * seen + i) % len(batches)] for i in range(seen)]
            z = [_rademacher(value, generator) for value in values]
            ends = []
            for direction in (step, -step):
                _place(
                    values, [c * (1 + direction * s) for c, s in zip(before, z, strict=True)]
                )
                ends.append(objective.gradients(model, values, some)[0])
            for name, c, s, up, down in zip(layers, before, z, *ends, strict=True):
                slope = c.double() * (up - down) / (2 * step)
                products[name].append(slope.cpu())
                signs[name].append(s.double().cpu())
    finally:
        _place(values, before)
    return _stacked(products), _stacked(signs)


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(2, like.shape, generator=generator) * 2 - 1).to(like)


@torch.no_grad()
def _place(values: list[nn.Parameter], tensors: list[Tensor]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        value.copy_(tensor)


def _stacked(lists: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(entries) for name, entries in lists.items()}


def _softened(model: nn.Module, objective: Objective, options: Options, use: Use) -> Objective:
    """On labels that the model draws, where the options ask for them."""
    if options.temperature is None:
        return objective
    return softened(model, objective, options.temperature, options.seed, use)


def _exact_part(
    model: nn.Module, layers: dict[str, SpectralLinear], objective: Objective, options: Options
) -> tuple[dict[str, Tensor], Samples]:
    """The gradient, and what turns products and signs into curvature samples and a constant."""
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
    """Samples (K, k) of the diagonal of H - beta B, and beta diag(B)."""
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
