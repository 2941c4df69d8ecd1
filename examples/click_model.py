"""A click-through model made smaller: its lookup tables and its multi-layer perceptron.

    python examples/click_model.py

A DeepFM-like model (factorisation machine and perceptron on the same embeddings) is trained on
generated clicks, whose ids are as uneven as real ones. Tables and layers are then factored, by
the loss of the clicks, by the inputs alone, or by the weights alone; printed is the area under
the curve on clicks that were not trained on, against the weights that are left.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import spectrim
from spectrim.pipeline.recipe import EmbeddingRecipe

FIELDS, VALUES, WIDTH = 8, 600, 16
METHODS = {
    "loss": ("obd", "loss_optimal", "obd"),
    "inputs": ("svd_llm", "uniform", "afm"),
    "weights": ("svd", "uniform", "svd"),
}
"""Method and allocation of the layers, method of the tables."""
Batch = tuple[Tensor, Tensor]


class ClickModel(nn.Module):
    """logit = sum_f w_f + sum_{f<g} <e_f, e_g> + MLP([e_1 ... e_F])"""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(VALUES, WIDTH) for _ in range(FIELDS))
        self.first = nn.ModuleList(nn.Embedding(VALUES, 1) for _ in range(FIELDS))
        for table in (*self.tables, *self.first):
            nn.init.normal_(table.weight, std=0.1)
        self.deep = nn.Sequential(
            *(nn.Linear(FIELDS * WIDTH, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
            nn.Linear(128, 1),
        )

    def forward(self, ids: Tensor) -> Tensor:
        columns = ids.unbind(1)
        looked_up = [table(c) for table, c in zip(self.tables, columns, strict=True)]
        stacked = torch.stack(looked_up, 1)
        linear = sum(table(c)[:, 0] for table, c in zip(self.first, columns, strict=True))
        pairs = 0.5 * (stacked.sum(1).square() - stacked.square().sum(1)).sum(1)
        return linear + pairs + self.deep(stacked.flatten(1))[:, 0]


def clicks(count: int, seed: int) -> Batch:
    """ids (n, F), frequent ones first, and clicks (n,) of a hidden model of few directions."""
    truth = torch.Generator().manual_seed(7)
    factors = torch.randn(FIELDS, VALUES, 3, generator=truth)
    bias = 0.5 * torch.randn(FIELDS, VALUES, generator=truth)
    source = torch.Generator().manual_seed(seed)
    popular = 1 / torch.arange(1, VALUES + 1).float()
    ids = torch.multinomial(popular, count * FIELDS, True, generator=source).view(count, FIELDS)
    fields = torch.arange(FIELDS)
    e = factors[fields, ids]
    score = bias[fields, ids].sum(1) + 0.4 * 0.5 * (e.sum(1).square() - e.square().sum(1)).sum(
        1
    )
    return ids, torch.bernoulli(torch.sigmoid(score - 1.0), generator=source)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each click."""
    ids, labels = batch
    return nn.functional.binary_cross_entropy_with_logits(model(ids), labels, reduction="none")


def train(model: nn.Module, data: Batch, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=1e-6)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0]), generator=order).split(512):
            optimizer.zero_grad()
            loss(model, (data[0][rows], data[1][rows])).mean().backward()
            optimizer.step()


@torch.no_grad()
def area(model: nn.Module, data: Batch) -> float:
    """Probability that a click is scored above what was not clicked."""
    scores, labels = model(data[0]).double(), data[1].bool()
    ranks = scores.argsort().argsort().double() + 1
    positive = int(labels.sum())
    negative = len(labels) - positive
    below = float(ranks[labels].sum()) - positive * (positive + 1) / 2
    return below / (positive * negative)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main(arguments: list[str] | None = None) -> list[tuple[str, float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--budgets", default="0.6,0.4,0.2")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    data, fresh = clicks(given.examples, seed=1), clicks(20_000, seed=2)
    model = ClickModel()
    train(model, data, given.epochs)
    model.eval()
    whole = area(model, fresh)
    print(f"{size(model):,} weights, area {whole:.4f}\n")
    print("| chosen by | weights left | area |\n|---|---|---|")
    batches = list(zip(data[0][:8192].split(1024), data[1][:8192].split(1024), strict=True))
    rows = [("original", 1.0, whole)]
    for name, (method, allocation, table) in METHODS.items():
        for budget in map(float, given.budgets.split(",")):
            recipe = spectrim.Recipe(
                method=method,
                allocation=allocation,
                budget=budget,
                include=(r"deep\.(0|2)",),
                embeddings=EmbeddingRecipe(budget=budget, method=table),
            )
            smaller = spectrim.compress_any(model, batches, loss, recipe).model
            rows.append((name, size(smaller) / size(model), area(smaller, fresh)))
            print("| {} | {:.3f} | {:.4f} |".format(*rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
