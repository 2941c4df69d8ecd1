"""`I = -c g + 1/2 c^2 a f`: the token Fisher f at the size that the loss's curvature has.

    a_l = tr(D H_l D) / tr(D F_l D),    D = diag(f^(-1/3)),    l a layer
    tr(D H_l D) = E[(D z)_l . (H D z)_l],    z of signs, drawn for every row anew

`f_i = E[(a d)^2]` is the closed form of `fisher`, from the gradient's own pass. Squared
gradients tell well which bases of a layer matter and badly how much: of a model that is sure
of the task, or that was trained on other labels, the Hessian is many times what they say, by a
factor of the layer. That factor is one number, and a few rows tell it: each row is its own
probe along all layers, so m rows average m probes at the price of 2 m rows of gradients. D
gives all bases a say; with equal steps the largest alone would have it. A factor with its
variance s^2 over the rows is drawn to the mean of all layers by `s^2 / (s^2 + t^2)`, t^2 the
variance between layers (DerSimonian and Laird, 1986)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrim.data.tasks import TaskBatch
from spectrim.errors import InputError
from spectrim.pruning.coordinate_statistics import moments
from spectrim.pruning.importance._importance import Importance, coordinates_of, taylor
from spectrim.pruning.importance._probing import Probes, probe, rounding_of
from spectrim.pruning.objective import Objective
from spectrim.pruning.spectral import SpectralLinear

REFERENCE = "closed form and probes together; the parts: BSI, arXiv:2605.01627"
_POWER = 1 / 3
_FLOOR = 1e-3
"""Of the median: a basis that no token uses would have steps without bound."""


@dataclass(frozen=True)
class Options:
    """rows: how many of the objective's the factors are taken from; energy: nats per token
    that the steps cost by f, which says how long they are."""

    rows: int = 32
    energy: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 2 or not self.energy > 0:
            raise InputError(
                f"rows {self.rows} has to be at least 2 and energy {self.energy} above zero"
            )


def estimate(
    model: nn.Module,
    layers: dict[str, SpectralLinear],
    objective: Objective,
    options: Options,
) -> Importance:
    """1 + 2 rows / N gradient passes, N the objective's rows.

    Raises InputError for a 16-bit model.
    """
    for layer in layers.values():
        rounding_of(layer.coordinates.value.dtype)  # refuses 16 bits before any pass
    found = moments(model, layers, objective)
    relative = {
        n: coordinates_of(layer).square() * found[n].fisher for n, layer in layers.items()
    }
    steps = _steps(relative, options.energy)
    rows = _some_rows(objective, options)
    factors = _factors(
        probe(model, layers, objective, steps, rows, options.seed), relative, steps
    )
    scores, slopes = {}, {}
    for name, layer in layers.items():
        slope = coordinates_of(layer) * found[name].gradient
        curvature = factors[name] * relative[name]
        scores[name] = taylor(torch.ones_like(slope), slope, curvature)
        slopes[name] = -slope
    return Importance(scores, 1 + 2 * len(rows) / len(objective.rows), gradient_terms=slopes)


def _steps(relative: dict[str, Tensor], energy: float) -> dict[str, Tensor]:
    """Return e f^(-1/3), with 1/2 sum_i f_i step_i^2 = energy over all layers."""
    floor = torch.cat(list(relative.values())).median() * _FLOOR
    if floor == 0:
        floor = floor + torch.finfo(floor.dtype).tiny ** 0.5
    shapes = {n: f.clamp_min(float(floor)) ** -_POWER for n, f in relative.items()}
    cost = sum(float((relative[n] * shape.square()).sum()) for n, shape in shapes.items())
    length = (2 * energy / cost) ** 0.5 if cost else 0.0
    return {n: length * shape for n, shape in shapes.items()}


def _some_rows(objective: Objective, options: Options) -> list[list[TaskBatch]]:
    """Drawn among those with a scored token, each as a batch of its own."""
    scored = objective.rows.scored[:, 1:].any(1).nonzero().flatten()
    generator = torch.Generator().manual_seed(options.seed)
    drawn = scored[torch.randperm(len(scored), generator=generator)[: options.rows]]
    return [[objective.rows.batch(row[None])] for row in drawn.sort().values]


def _factors(
    probes: Probes, relative: dict[str, Tensor], steps: dict[str, Tensor]
) -> dict[str, float]:
    """a_l of every layer."""
    means, variances = _ratios(probes, relative, steps)
    return dict(zip(relative, _pooled(means, variances).clamp_min(0.0).tolist(), strict=True))


def _ratios(
    probes: Probes, relative: dict[str, Tensor], steps: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Quadratic forms of the probes over what f expects, by layer: mean, and its variance."""
    share = probes.tokens / probes.tokens.sum()
    means, variances = [], []
    for name, f in relative.items():
        expected = float((f * steps[name].square()).sum())
        forms = (probes.signs[name] * steps[name] * probes.products[name]).sum(1)
        ratios = forms / expected if expected else torch.ones_like(forms)
        means.append((share * ratios).sum())
        variances.append((share * (ratios - means[-1])).square().sum())
    return torch.stack(means), torch.stack(variances)


def _pooled(means: Tensor, variances: Tensor) -> Tensor:
    """Each mean drawn to that of all by how uncertain it is beside how they differ."""
    variances = variances.clamp_min(float(variances.median()) * _FLOOR + 1e-30)
    weights = 1 / variances
    center = (weights * means).sum() / weights.sum()
    excess = (weights * (means - center).square()).sum() - (len(means) - 1)
    between = excess / (weights.sum() - weights.square().sum() / weights.sum())
    between = between.clamp_min(0.0) if len(means) > 1 else torch.ones(())
    trust = 1 / (variances + between)
    center = (trust * means).sum() / trust.sum()
    return (means * between + center * variances) / (between + variances)
