"""Figures of the rank of a model's weights and, with a text, of its hidden states."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.errors import ModelError
from spectrim.evaluation import evaluate_model, hidden_states
from spectrim.layers import CompactLinear, layer_class
from spectrim.linalg import spectrum as spectra
from spectrim.models.experts import SplitExperts, fused_expert_names, split_experts
from spectrim.models.linear import get_weight, is_linear
from spectrim.models.replace import compact_layers
from spectrim.models.targets import decoder_blocks as decoder_blocks
from spectrim.runtime.context import ProgressBar, silent

_ROUNDING = 1e-6
"""Relative to the largest singular value; below it is no direction of a stored weight."""
_BATCH = 8
_REPEATS = 3


@dataclass(frozen=True)
class LayerReport:
    """The rank figures of a layer.

    rank: of the stored factors, None for a dense layer. The break-even ranks are the largest at
    which plain and pivoted factors are still smaller than the dense layer.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    effective_rank: float
    stable_rank: float
    tail_exponent: float
    break_even_plain: int
    break_even_pivoted: int


@dataclass(frozen=True)
class Timing:
    """Milliseconds of both figures on the hidden states of a number of tokens."""

    tokens: int
    nuclear_norm: float
    entropy: float
    nuclear_norm_ms: float
    entropy_ms: float


def inspect_layers(model: PreTrainedModel, track: ProgressBar = silent) -> list[LayerReport]:
    """Return figures of the linear layers of the decoder blocks, dense or compressed.

    Fused experts are split in place. Raises ModelError for a model without linear layers.
    """
    split_experts(model, fused_expert_names(model))
    layers = list(linear_layers(model))
    if not layers:
        raise ModelError(f"{type(model).__name__} has no linear layer in a decoder block")
    return [_layer(*layer) for layer in track(layers, "inspecting", len(layers))]


def removed_experts(model: nn.Module) -> dict[str, tuple[int, list[int]]]:
    """Return (experts before, numbers of those removed) by module that misses some."""
    return {
        name: (len(module.down), module.removed)
        for name, module in model.named_modules()
        if isinstance(module, SplitExperts) and module.removed
    }


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield compressed layers, and dense ones in the decoder blocks, in model order."""
    compact = dict(compact_layers(model))
    inside = tuple(name + "." for name, _ in decoder_blocks(model))
    inner = tuple(name + "." for name in compact)
    for name, module in model.named_modules():
        dense = is_linear(module) and name.startswith(inside) and not name.startswith(inner)
        if name in compact or dense:
            yield name, module


def _layer(name: str, module: nn.Module) -> LayerReport:
    rank = None
    if isinstance(module, CompactLinear):
        rank, weight = module.rank, module.dense()[0]
    else:
        weight = get_weight(module).detach()
    values = spectra.singular_values(weight)
    values = values[values > _ROUNDING * values.max()]
    out_features, in_features = weight.shape
    return LayerReport(
        name,
        (out_features, in_features),
        rank,
        spectra.effective_rank(values) if len(values) else 0.0,
        spectra.stable_rank(values) if len(values) else 0.0,
        spectra.tail_exponent(values),
        break_even("lowrank", (out_features, in_features)),
        break_even("pivoted", (out_features, in_features)),
    )


def break_even(kind: str, shape: tuple[int, int]) -> int:
    """Return the largest rank at which layers of `kind` are smaller than the dense one."""
    cost = layer_class(kind).cost
    return max(
        (r for r in range(1, min(shape) + 1) if cost(*shape, r) < prod(shape)), default=0
    )


def representation(model: PreTrainedModel, blocks: TokenBlocks) -> dict[str, float]:
    """Return the means over rows of both figures of the last hidden states."""
    return evaluate_model(model, blocks, ("nuclear_norm", "matrix_entropy"))


def timings(
    model: PreTrainedModel, blocks: TokenBlocks, sizes: Sequence[int] = ()
) -> list[Timing]:
    """Time both figures on the first L tokens' states, by default for 128, 256, ... and all."""
    states = torch.cat(list(hidden_states(model, blocks, _BATCH)))
    steps = [128 * 2**step for step in range(20)]
    chosen = sizes or [*(size for size in steps if size < len(states)), len(states)]
    return [_timed(spectra.token_directions(states[:size])) for size in chosen]


def _timed(directions: Tensor) -> Timing:
    norm, norm_ms = _best(spectra.matrix_nuclear_norm, directions)
    entropy, entropy_ms = _best(spectra.matrix_entropy, directions)
    return Timing(len(directions), norm, entropy, norm_ms, entropy_ms)


def _best(figure: Callable[[Tensor], float], directions: Tensor) -> tuple[float, float]:
    """Return the value, and the least of some processor times in milliseconds."""
    seconds = []
    for _ in range(_REPEATS):
        start = time.process_time()
        value = figure(directions)
        seconds.append(time.process_time() - start)
    return value, 1000 * min(seconds)
