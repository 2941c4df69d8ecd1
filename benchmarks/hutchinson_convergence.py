"""How fast Hutchinson's estimate of a Hessian's diagonal converges, against the exact one.

    python benchmarks/hutchinson_convergence.py

A Llama small enough for every second derivative (SVD bases, float64, random weights and
tokens). For K probes: the root mean square error of the estimate, what the variance formula
1/K sum_{j != i} H_ij^2 predicts, and the same with the Kronecker control variate. Markdown on
standard output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from spectrim.data.tasks import TaskRows
from spectrim.decompositions import decompose_layer
from spectrim.models.targets import find_targets
from spectrim.pruning import IMPORTANCE, Objective, SpectralLinear
from spectrim.registry import NoOptions
from spectrim.statistics import LayerProblem

PROBES = (1, 2, 4, 8, 16, 32, 64, 128)
REPEATS = 8


def build() -> tuple[nn.Module, dict[str, SpectralLinear]]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    config._attn_implementation = "eager"  # the fused attention has no second derivative
    model = LlamaForCausalLM(config).eval()
    layers = {}
    for target in find_targets(model):
        weight = model.get_submodule(target.name).weight.detach()
        problem = LayerProblem(target.name, weight, None, None)
        layers[target.name] = SpectralLinear.from_factors(
            decompose_layer("svd", problem, NoOptions()), None
        )
        model.set_submodule(target.name, layers[target.name])
    return model.double(), layers


def rows() -> TaskRows:
    ids = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    scored = mask.clone()
    scored[:, 0] = False
    return TaskRows(ids, mask, scored, "random", "random tokens")


def hessian(
    model: nn.Module, layers: dict[str, SpectralLinear], objective: Objective
) -> tuple[Tensor, Tensor]:
    """Gradient (N,) and Hessian (N, N) in all coordinates, from one batch."""
    values = [layer.coordinates.value for layer in layers.values()]
    batch = next(objective.batches())
    summed, count = objective.loss(model, batch)
    first = torch.autograd.grad(summed / count, values, create_graph=True)
    flat = torch.cat(first)
    lines = [
        torch.cat(torch.autograd.grad(g, values, retain_graph=True, materialize_grads=True))
        for g in flat
    ]
    return flat.detach(), torch.stack(lines)


def error(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    exact: Tensor,
    **options: object,
) -> float:
    """Root mean square error of I = -g + h / 2 over bases and repeats, times two."""
    squares = []
    for seed in range(REPEATS):
        given = IMPORTANCE.options("hutchinson", {"negative": "keep", "seed": seed, **options})
        found = IMPORTANCE.get("hutchinson").estimate(model, layers, objective, given)
        squares.append((2 * (torch.cat(list(found.scores.values())) - exact)).square().mean())
    return float(torch.stack(squares).mean().sqrt())


def main() -> None:
    model, layers = build()
    objective = Objective(rows(), 8)
    gradient, second = hessian(model, layers, objective)
    diagonal = second.diagonal()
    exact = -gradient + 0.5 * diagonal
    noise = float((second.square().sum(1) - diagonal.square()).mean().sqrt())
    size = float(diagonal.square().mean().sqrt())
    print(f"{len(diagonal)} bases; root mean square of the diagonal {size:.3e}\n")
    print("| K | error / diagonal | by the formula | with the Kronecker control |")
    print("|---:|---:|---:|---:|")
    for probes in PROBES:
        plain = error(model, layers, objective, exact, probes=probes)
        controlled = error(model, layers, objective, exact, probes=probes, control="kronecker")
        cells = (plain, noise / probes**0.5, controlled)
        print(f"| {probes} | " + " | ".join(f"{c / size:.2f}" for c in cells) + " |")


if __name__ == "__main__":
    main()
