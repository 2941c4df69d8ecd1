"""Products of the Hessian with random signs, from differences of gradients.

    H s ~= (g(s) - g(-s)) / 2,    s = step * z,    g(theta) = dL/dtheta,    c = c0 (1 + theta)

z holds Rademacher signs, drawn over all bases of all layers at once; both members of a pair see
the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim.data.tasks import TaskBatch
from spectrim.errors import InputError
from spectrim.pruning.objective import Objective
from spectrim.pruning.spectral import SpectralLinear

_ROUNDING = 3.0
"""A difference of gradients g with relative rounding u has error u |g| / eps + O(eps^2); the
sum is smallest near eps = (3 u)^(1/3)."""


@dataclass(frozen=True)
class Probes:
    """products[name] (K, k): H s; signs[name] (K, k): z; tokens (K,): scored by each probe."""

    products: dict[str, Tensor]
    signs: dict[str, Tensor]
    tokens: Tensor


def rounding_step(dtype: torch.dtype) -> float:
    """Return eps for a gradient computed in `dtype`. Raises InputError for 16 bits."""
    return float((_ROUNDING * rounding_of(dtype)) ** (1 / 3))


def rounding_of(dtype: torch.dtype) -> float:
    """Relative, of gradients in `dtype`, of which norms and rotations are in float32 whatever
    the model's dtype. Raises InputError for 16 bits, whose differences say nothing."""
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    if unit > 1e-4:
        raise InputError(
            f"differences of {dtype} gradients drown in rounding; load the model in float32"
        )
    return unit


def probe(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    steps: dict[str, Tensor],
    seen: list[list[TaskBatch]],
    seed: int,
) -> Probes:
    """One probe for each entry of `seen`, the batches it is taken on; steps[name] (k,)."""
    values = [layer.coordinates.value for layer in layers.values()]
    before = [value.detach().clone() for value in values]
    sizes = [steps[name].to(c) for name, c in zip(layers, before, strict=True)]
    products: dict[str, list[Tensor]] = {name: [] for name in layers}
    signs: dict[str, list[Tensor]] = {name: [] for name in layers}
    tokens = []
    generator = torch.Generator().manual_seed(seed)
    try:
        for batches in seen:
            z = [_rademacher(value, generator) for value in values]
            ends = []
            for direction in (1, -1):
                moved = zip(before, sizes, z, strict=True)
                _place(values, [c * (1 + direction * step * s) for c, step, s in moved])
                gradients, count = objective.gradients(model, values, batches)
                ends.append(gradients)
            tokens.append(count)
            for name, c, s, up, down in zip(layers, before, z, *ends, strict=True):
                products[name].append((c.double() * (up - down) / 2).cpu())
                signs[name].append(s.double().cpu())
    finally:
        _place(values, before)
    return Probes(_stacked(products), _stacked(signs), torch.tensor(tokens).double())


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(2, like.shape, generator=generator) * 2 - 1).to(like)


@torch.no_grad()
def _place(values: list[nn.Parameter], tensors: list[Tensor]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        value.copy_(tensor)


def _stacked(lists: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(entries) for name, entries in lists.items()}
