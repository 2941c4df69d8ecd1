"""`fuse` and `unfuse`: rewire a compressed model for inference, and undo it.

It works for any architecture: one forward pass of two tokens shows which layers read the same
tensor, and a second one checks that the outputs are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.inference import pivoted_gather
from spectrim.inference.column_major import (
    put_dense_in_best_order,
    put_in_best_order,
    store_by_rows,
    store_dense_by_rows,
)
from spectrim.inference.decode_kernel import FewTokens
from spectrim.inference.grouped_projection import PackedFirst, Reader, packable
from spectrim.inference.kernels.factor_spec import is_readable
from spectrim.inference.tiling import Tiling
from spectrim.inference.tiling.hooks import FEWEST, unhook
from spectrim.layers import FactoredLinear
from spectrim.models.capture import group_by_input
from spectrim.models.replace import factored_layers
from spectrim.models.targets import Target

RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Tolerance of the outputs: another order of the sums, carried through all blocks."""
_HALF = 0.1


@dataclass(frozen=True)
class FuseReport:
    """The names of the layers of each packed product, and of all fused layers."""

    groups: tuple[tuple[str, ...], ...]
    layers: tuple[str, ...]


@dataclass
class Execution:
    """The execution of a factored layer: first factor alone or packed, second one buffered.

    kernel: computes both factors at once for few tokens, if there is a kernel for them.
    tiling: defers the output for many tokens, to compute it in tiles.
    """

    reader: Reader | None = None
    kernel: FewTokens | None = None
    tiling: Tiling | None = None

    def __call__(self, layer: FactoredLinear, x: Tensor) -> Tensor:
        if self.tiling is not None and self.tiling.takes(layer, x):
            return self.tiling(layer, x)
        if self.kernel is not None and self.kernel.takes(layer, x):
            return self.kernel(layer, x)
        z = layer.first(x) if self.reader is None else self.reader(layer, x)
        return pivoted_gather.finish(layer, z)


def fuse(
    model: nn.Module,
    run: Callable[[], Any] | None = None,
    kernels: bool = False,
    tiles: bool = False,
) -> FuseReport:
    """Rewire the factored layers of `model` in place for inference; `unfuse` undoes it.

    The first factors of layers that read the same tensor become one product, pivoted layers
    write their outputs once, and a CPU reads short rows by columns, those of dense layers too.
    `generate`, `save_pretrained` and `state_dict` work as before; training falls back to the
    plain layers.

    Args:
        model: a compressed model.
        run: a forward pass to analyze and to check with, by default the model on two tokens;
            it returns a tensor or a model output.
        kernels: on a GPU with Triton, replace two products by one kernel for up to 16 tokens
            (try with `spectrim bench-speed --kernels` first).
        tiles: run prompts through attention and feed-forward in tiles, without writing
            activations of full width (`spectrim.inference.tiling`); with `kernels`, by Triton.

    Raises:
        ModelError: there is no factored layer, or the outputs changed (the model is restored).
    """
    unfuse(model)
    layers = {name: layer for name, layer in factored_layers(model) if layer.TWO_STEPS}
    if not layers:
        raise ModelError(f"{type(model).__name__} has no factored layer to fuse")
    run = run or (lambda: _two_tokens(model))
    with torch.inference_mode():
        before = _tensor(run())
        groups = _groups(model, layers, run)
        try:
            tiling = Tiling(fewest=1, kernels=kernels) if tiles else None
            _rewire(layers, groups, kernels, tiling)
            put_dense_in_best_order(model)
            if tiling is not None:
                tiling.hook(model)
                _check(model, _tensor(run()), before)
                tiling.fewest = FEWEST
            _check(model, _tensor(run()), before)
        except BaseException:
            unfuse(model)
            raise
    return FuseReport(tuple(map(tuple, groups)), tuple(layers))


def unfuse(model: nn.Module) -> None:
    """Restore the plain layers, each with its own tensors; a plain model is left unchanged."""
    unhook(model)
    packs: dict[int, PackedFirst] = {}
    for _, layer in factored_layers(model):
        if isinstance(layer.execution, Execution) and layer.execution.reader is not None:
            packs[id(layer.execution.reader.packed)] = layer.execution.reader.packed
        layer.execution = None
        store_by_rows(layer)
    store_dense_by_rows(model)
    for packed in packs.values():
        packed.unpack()


def _rewire(
    layers: dict[str, FactoredLinear],
    groups: list[list[str]],
    kernels: bool,
    tiling: Tiling | None,
) -> None:
    readers: dict[str, Reader] = {}
    for names in groups:
        packed = PackedFirst([layers[name] for name in names])
        readers |= {name: packed.reader(layers[name]) for name in names}
    for name, layer in layers.items():
        kernel = FewTokens() if kernels and is_readable(layer) else None
        layer.execution = Execution(readers.get(name), kernel, tiling)
        put_in_best_order(layer)


def _groups(
    model: nn.Module, layers: dict[str, FactoredLinear], run: Callable[[], Any]
) -> list[list[str]]:
    """Return groups of layers that read one tensor in `run` and can share a single product.

    A first factor that layers of other inputs use too (a shared basis) is in one group only.
    """
    targets = [
        Target(name, (layer.out_features, layer.in_features))
        for name, layer in layers.items()
        if packable(layer)
    ]
    found: dict[tuple[str, torch.dtype, torch.device], list[str]] = {}
    group_of: dict[int, str] = {}
    for name, group in group_by_input(model, targets, run).items():
        first = layers[name].first
        if group_of.setdefault(id(first), group) == group:
            key = (group, first.weight.dtype, first.weight.device)
            found.setdefault(key, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _two_tokens(model: nn.Module) -> Any:
    device = next(model.parameters()).device
    return model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device))


def _tensor(output: Any) -> Tensor:
    first = output if isinstance(output, Tensor) else output[0]
    return first.detach().clone()


def _check(model: nn.Module, after: Tensor, before: Tensor) -> None:
    """Raise ModelError if the outputs differ by more than rounding."""
    difference = (after.double() - before.double()).norm()
    error = float(difference / before.double().norm().clamp_min(1e-30))
    if error > RELATIVE.get(before.dtype, _HALF):
        raise ModelError(
            f"outputs of {type(model).__name__} change when fused (relative difference "
            f"{error:.1e}): its layers may modify their input in place"
        )
