"""An encoder whose layers are trained to reconstruct rows and to express them by each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

EXPRESS_WEIGHT = 0.1
"""Of the self-expression relative to the reconstruction, both per feature."""
RATE = 1e-3


class Encoder:
    """Layers H_1.. of the given widths over rows H_0 (n, d), which are scaled to size one."""

    def __init__(self, rows: Tensor, widths: Sequence[int], generator: torch.Generator):
        self.rows = rows / rows.square().mean().sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
        self.network = _Autoencoder([rows.shape[1], *widths], generator)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=RATE)

    @torch.no_grad()
    def gram(self) -> Tensor:
        """Return the mean of the layers' Gram matrices (n, n), each of mean diagonal one."""
        layers = self.network(self.rows)[0]
        return torch.stack([_scaled(h @ h.T) for h in layers]).mean(0)

    def step(self, coefficients: Tensor | None) -> None:
        """Take one step on the reconstruction and, with C (n, n), on `||H_l - C H_l||^2`."""
        hidden, rebuilt = self.network(self.rows)
        loss = (rebuilt - self.rows).square().mean()
        if coefficients is not None:
            parts = [(h - coefficients @ h).square().mean() for h in hidden[1:]]
            loss = loss + EXPRESS_WEIGHT * torch.stack(parts).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def _scaled(gram: Tensor) -> Tensor:
    return gram / gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)


class _Autoencoder(nn.Module):
    def __init__(self, widths: list[int], generator: torch.Generator):
        super().__init__()
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.Linear(b, a) for a, b in reversed(pairs))
        for layer in [*self.down, *self.up]:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        self.double()

    def forward(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        hidden = [rows]
        for layer in self.down:
            hidden.append(torch.tanh(layer(hidden[-1])))
        rebuilt = hidden[-1]
        for number, layer in enumerate(self.up):
            rebuilt = layer(torch.tanh(rebuilt) if number else rebuilt)
        return hidden, rebuilt
