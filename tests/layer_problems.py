"""Single linear layers with statistics, made without a language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.decompositions import DECOMPOSITIONS
from spectrim.statistics import (
    STATISTICS,
    Calibration,
    LayerProblem,
    LayerStatistics,
    LayerTokens,
)

LAYER = "layer"


def random_layer(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weight (out, in), of decaying spectrum as trained layers have, and bias (out,)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    weight = u * (s * 0.8 ** torch.arange(len(s))) @ v
    return weight, torch.randn(shape[0], generator=generator, dtype=torch.float64)


def stored_weights(layer: nn.Module) -> int:
    """What a layer holds, in weights of 16 bits: its parameters without bias, and packed bits
    but for those of `pivot_mask`, one per output."""
    weights = sum(p.numel() for n, p in layer.named_parameters() if not n.endswith("bias"))
    held = [b for n, b in layer.named_buffers() if n != "pivot_mask"]
    bits = sum(8 * b.numel() * b.element_size() for b in held)
    return weights + -(-bits // 16)


def random_tokens(
    weight: Tensor, bias: Tensor | None, count: int, seed: int = 0
) -> LayerTokens:
    """Correlated inputs and gradients with means, in sequences of eight tokens."""
    generator = torch.Generator().manual_seed(1)

    def rows(width: int) -> Tensor:
        mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
        noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
        return noise @ (mixing / width**0.5 + 0.5 * torch.eye(width)) + 0.3

    x, g = rows(weight.shape[1]), rows(weight.shape[0])
    y = x @ weight.T if bias is None else x @ weight.T + bias
    return LayerTokens(x, y, g, torch.arange(count) // 8)


def statistics_of(
    tokens: LayerTokens, shape: tuple[int, int], names: tuple[str, ...]
) -> LayerStatistics:
    """`LayerStatistics` of one layer from its tokens."""
    calibration = Calibration.empty({LAYER: shape}, {LAYER: LAYER}, names)
    for name in names:
        STATISTICS.get(name).update(calibration.states[name][LAYER], tokens)
    calibration.counts[LAYER] = calibration.tokens = tokens.count
    return calibration.layer(LAYER)


def statistics_from(states: dict[str, dict[str, Tensor]], count: int = 1) -> LayerStatistics:
    """`LayerStatistics` of one layer from summed states."""
    by_layer = {name: {LAYER: state} for name, state in states.items()}
    return Calibration({LAYER: LAYER}, {LAYER: count}, by_layer, count).layer(LAYER)


def problem_for(
    method: str, shape: tuple[int, int], bias: bool = False, count: int = 256
) -> LayerProblem:
    """A random layer with every statistic that `method` requires."""
    weight, offset = random_layer(shape)
    given = offset if bias else None
    names = tuple(DECOMPOSITIONS.get(method).REQUIRES)
    statistics = statistics_of(random_tokens(weight, given, count), shape, names)
    return LayerProblem(LAYER, weight, given, statistics)
