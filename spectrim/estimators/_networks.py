"""Small networks of estimators, and the loop that trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

HIDDEN = 128


def make_layers(widths: Sequence[int]) -> list[nn.Module]:
    """Return linear layers of the given widths, each with a ReLU after it."""
    return [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]


def initialize(layers: Iterable[nn.Module], generator: torch.Generator) -> None:
    """Draw the weights of linear layers by He's rule; their biases are zero."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class Training:
    """Passes over rows in batches, by Adam; `whole` leaves out a last batch that is shorter."""

    epochs: int
    batch_size: int
    rate: float
    whole: bool = False

    def run(
        self,
        network: nn.Module,
        loss_of: Callable[[Tensor], Tensor],
        rows: int,
        generator: torch.Generator,
    ) -> list[float]:
        """Minimize the loss of indices (b,) of rows; return its mean in each pass."""
        optimizer = torch.optim.Adam(network.parameters(), lr=self.rate)
        least = min(self.batch_size, rows) if self.whole else 1
        history = []
        for _ in range(self.epochs):
            losses = []
            for batch in torch.randperm(rows, generator=generator).split(self.batch_size):
                if len(batch) < least:
                    continue
                loss = loss_of(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            history.append(sum(losses) / len(losses))
        return history


class TwoHeads(nn.Module):
    """A backbone with a head of features and one of clusters, both of unit rows (n, width).

    backbone: a module that is copied, or None for two layers of HIDDEN units.
    """

    def __init__(
        self, backbone: nn.Module | None, data: Tensor, width: int, generator: torch.Generator
    ):
        super().__init__()
        layers = make_layers([data.shape[1], HIDDEN, HIDDEN])
        self.backbone = nn.Sequential(*layers) if backbone is None else deepcopy(backbone)
        inner = self.backbone(data[:1]).shape[1]
        self.features, self.clusters = nn.Linear(inner, width), nn.Linear(inner, width)
        fresh = [self.features] if backbone is not None else [*layers, self.features]
        initialize(fresh, generator)

    def copy_head(self) -> None:
        self.clusters.load_state_dict(self.features.state_dict())

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.backbone(rows)
        normalize = nn.functional.normalize
        return normalize(self.features(inner), dim=1), normalize(self.clusters(inner), dim=1)
