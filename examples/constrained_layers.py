"""Residual streams on the spectral sphere and class subspaces, trained together.

    python examples/constrained_layers.py --steps 200

Classes are planted subspaces of 32 features, seen through noise. AdamW trains the network and
Riemannian SGD the head; both constraints hold at every step, up to rounding. Needs the extra
`nn`.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectrim.nn import grassmann_linear
from spectrim.nn.grassmann_linear import GrassmannLinear
from spectrim.nn.spectral_sphere import hyper_connection
from spectrim.optim.riemannian_sgd import RiemannianSGD, split_parameters

WIDTH, CLASSES, DIM = 32, 10, 3


class Network(nn.Module):
    def __init__(self, depth: int = 4, streams: int = 4):
        super().__init__()
        self.streams = streams
        branches = (
            nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())
            for _ in range(depth)
        )
        self.layers = nn.ModuleList(
            hyper_connection(branch, WIDTH, streams, layer)
            for layer, branch in enumerate(branches)
        )
        self.head = GrassmannLinear(WIDTH, CLASSES, subspace_dim=DIM)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.repeat_interleave(self.streams, dim=0)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden.view(len(x), self.streams, WIDTH).sum(1))


def points(count: int, planted: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    labels = torch.randint(CLASSES, (count,))
    inside = (planted[labels] @ torch.randn(count, DIM, 1)).squeeze(-1)
    return inside + noise * torch.randn(count, WIDTH), labels


def mixing_violation(network: Network, x: Tensor) -> float:
    """Largest deviation of the sum of all streams, with the branches silenced."""
    hidden = x.repeat_interleave(network.streams, dim=0)
    first = network.layers[0]
    _, mixed, _ = first.width_connection(hidden)
    sums = (values.view(len(x), -1, WIDTH).sum(1) for values in (mixed, hidden))
    return float((next(sums) - next(sums)).abs().max())


@torch.no_grad()
def figures_of(network: Network, x: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "accuracy": (network(x).argmax(1) == labels).float().mean().item(),
        "orthonormality": grassmann_linear.violation(network.head),
        "stream sums": mixing_violation(network, x[:64]),
    }


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.2)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    planted = torch.linalg.qr(torch.randn(CLASSES, WIDTH, DIM)).Q
    network = Network()
    bases, others = split_parameters(network)
    optimizers = RiemannianSGD(bases, lr=0.02), torch.optim.AdamW(others, lr=1e-3)
    for _ in range(given.steps):
        x, labels = points(128, planted, given.noise)
        for optimizer in optimizers:
            optimizer.zero_grad()
        cross_entropy(network(x), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
    figures = figures_of(network, *points(1000, planted, given.noise))
    for name, value in figures.items():
        print(f"{name}\t{value:.3g}")
    return figures


if __name__ == "__main__":
    main()
