"""Gradient and closed-form curvature of every coordinate from one gradient pass.

With a_t = r_i^T x_t the input's and d_t = l_i^T g_t the output gradient's projection on basis i
at token t (g_t the gradient of the summed loss), and n the scored tokens,

    gradient        dL/dc_i       = 1/n sum_t a_t d_t
    Kronecker       d2L/dc_i^2   ~= 1/(n T) (sum_t a_t^2) (sum_t d_t^2)
                                  = T/n (l_i^T C_g l_i) (r_i^T C_x r_i)
    token Fisher    d2L/dc_i^2   ~= 1/n sum_t (a_t d_t)^2

T counts the tokens that pass through the layer. The first curvature is that of OBD-LLM's
Kronecker factors (Li et al., 2026, arXiv:2604.00821), the second drops its assumption that
inputs and gradients are independent. Both need only sums over the projections, which the
spectral layer computes anyway: memory O(k) per layer instead of O(out^2 + in^2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim.models.hooks import attach_hooks
from spectrim.pruning.objective import Objective
from spectrim.pruning.spectral import Coordinates, SpectralLinear


@dataclass
class Moments:
    """Sums over tokens of a d, (a d)^2, a^2 and d^2, each (k,) float64; how many tokens."""

    product: Tensor
    squared: Tensor
    inputs: Tensor
    outputs: Tensor
    tokens: int = 0
    scored: int = 0

    @classmethod
    def zeros(cls, count: int) -> Moments:
        product, squared, inputs, outputs = torch.zeros(4, count, dtype=torch.float64)
        return cls(product, squared, inputs, outputs)

    def add(self, projections: Tensor, gradients: Tensor) -> None:
        products = projections * gradients
        self.product += _column_sums(products)
        self.squared += _column_sums(products.square())
        self.inputs += _column_sums(projections.square())
        self.outputs += _column_sums(gradients.square())
        self.tokens += len(products)

    @property
    def gradient(self) -> Tensor:
        return self.product / max(1, self.scored)

    @property
    def kronecker(self) -> Tensor:
        return self.inputs * self.outputs / max(1, self.tokens) / max(1, self.scored)

    @property
    def fisher(self) -> Tensor:
        return self.squared / max(1, self.scored)


def _column_sums(values: Tensor) -> Tensor:
    return values.sum(0, dtype=torch.float64).cpu()


def moments(
    model: nn.Module, layers: dict[str, SpectralLinear], objective: Objective
) -> dict[str, Moments]:
    """Return the moments of all layers, by one gradient pass over the objective's rows."""
    found = {name: Moments.zeros(layer.bases) for name, layer in layers.items()}
    receivers = {name: entry.add for name, entry in found.items()}
    scored = gradient_pass(model, layers, objective, receivers)
    for entry in found.values():
        entry.scored = scored
    return found


Receiver = Callable[[Tensor, Tensor], None]
"""Takes the projections a and d of the tokens of a batch, both (tokens, k)."""


def gradient_pass(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    receivers: Mapping[str, Receiver],
) -> int:
    """Hand every layer's projections to its receiver; returns n, the scored tokens."""
    parameters = [layer.coordinates.value for layer in layers.values()]
    scored = 0
    with _recording(layers, receivers) as present:
        for batch in objective.batches():
            present.mask = batch.mask
            summed, tokens = objective.loss(model, batch)
            torch.autograd.grad(summed, parameters, materialize_grads=True)
            scored += int(tokens)
    return scored


@dataclass
class _Present:
    """The batch under way: mask (B, T) bool, True on tokens."""

    mask: Tensor | None = None

    def real(self, values: Tensor) -> Tensor:
        """Return the rows (tokens, k) of (..., k) that are tokens."""
        mask = self.mask
        if mask is not None and values.shape[:-1] == mask.shape:
            return values[mask.to(values.device)]
        return values.reshape(-1, values.shape[-1])


@contextmanager
def _recording(
    layers: dict[str, SpectralLinear], receivers: Mapping[str, Receiver]
) -> Iterator[_Present]:
    present = _Present()
    after = [(layer.coordinates, _hook(receivers[n], present)) for n, layer in layers.items()]
    with attach_hooks(after=after):
        yield present


def _hook(receive: Receiver, present: _Present) -> Callable[..., None]:
    def forward(module: Coordinates, inputs: tuple[Tensor], output: Tensor) -> None:
        projections = present.real(inputs[0].detach())
        output.register_hook(
            lambda gradient: receive(projections, present.real(gradient.detach()))
        )

    return forward
