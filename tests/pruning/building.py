"""Small spectral models and tasks that the tests of selection share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spectrim.data.tasks import TaskBatch, TaskRows
from spectrim.decompositions import decompose_layer
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.targets import find_targets
from spectrim.pruning import Objective, SpectralLinear
from spectrim.registry import NoOptions
from spectrim.statistics import LayerProblem
from tests.tiny_models import TINY_MODELS, tiny_tokens


def rows(count: int = 6, length: int = 12, padded: bool = False) -> TaskRows:
    ids = tiny_tokens(rows=count, length=length)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1::2, length - 3 :] = not padded
    scored = mask.clone()
    scored[:, : length // 2] = False
    return TaskRows(ids, mask, scored, f"{count}x{length}", "random")


def spectral(model: nn.Module, method: str = "svd") -> dict[str, SpectralLinear]:
    """Spectral layers in place of all targets of `model`, by name."""
    layers = {}
    for target in find_targets(model):
        old = model.get_submodule(target.name)
        problem = LayerProblem(target.name, get_weight(old).detach(), get_bias(old), None)
        factors = decompose_layer(method, problem, NoOptions())
        layers[target.name] = SpectralLinear.from_factors(factors, get_bias(old))
        model.set_submodule(target.name, layers[target.name])
    return layers


def spectral_llama() -> tuple[nn.Module, dict[str, SpectralLinear]]:
    """In float64, where differences of losses are exact enough to compare with."""
    model = TINY_MODELS["llama"]().eval()
    model.set_attn_implementation("eager")  # the fused one has no second derivative
    layers = spectral(model)
    return model.double(), layers


class Quadratic(nn.Module):
    """L = 1/2 |y|^2 summed over the tokens of fixed inputs: quadratic in the coordinates."""

    def __init__(self, out_features: int, in_features: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (out_features, in_features)
        self.layer = nn.Linear(in_features, out_features, bias=False).double()
        self.layer.weight.data = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.inputs = torch.randn(7, in_features, generator=generator, dtype=torch.float64)
        self.wanted = torch.randn(7, out_features, generator=generator, dtype=torch.float64)

    def loss(self, model: nn.Module, batch: TaskBatch) -> tuple[Tensor, int]:
        errors = self.layer(self.inputs[batch.ids[:, 0]]) - self.wanted[batch.ids[:, 0]]
        return 0.5 * errors.square().sum(), len(batch.ids)

    def objective(self) -> Objective:
        ids = torch.arange(7)[:, None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        return Objective(TaskRows(ids, mask, mask, "quadratic", "quadratic"), 3, self.loss)


def coordinate_hessian(
    model: nn.Module, layers: dict[str, SpectralLinear], objective: Objective
) -> tuple[Tensor, Tensor]:
    """Gradient (N,) and Hessian (N, N) of the mean loss in all coordinates."""
    values = [layer.coordinates.value for layer in layers.values()]
    total, count = 0.0, 0
    for batch in objective.batches():
        summed, tokens = objective.loss(model, batch)
        total, count = total + summed, count + tokens
    flat = torch.autograd.grad(total / count, values, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in flat])
    lines = [
        torch.cat(torch.autograd.grad(g, values, retain_graph=True, materialize_grads=True))
        for g in gradient
    ]
    return gradient.detach(), torch.stack(lines)


def removals(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    names: Iterable[str] | None = None,
    every: int = 1,
) -> dict[str, Tensor]:
    """The measured change of the loss when each basis, or `every` n-th, is removed alone."""
    base = objective.value(model)
    found = {}
    for name in names or layers:
        value, changes = layers[name].coordinates.value, []
        for i in range(0, layers[name].bases, every):
            before = value[i].item()
            with torch.no_grad():
                value[i] = 0.0
                changes.append(objective.value(model) - base)
                value[i] = before
        found[name] = torch.tensor(changes, dtype=torch.float64)
    return found
