"""Hooks that start and end deferral in a model: at its layers and embeddings, and its blocks.

The output of a block is computed as a whole, in one pass of tiles through all that was deferred
in it, so that nothing is computed twice and no expression grows from block to block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.inference.kernels.factor_spec import is_readable
from spectrim.inference.tiling.embedding import Ids
from spectrim.inference.tiling.lazy_tensor import LazyTensor, materialize
from spectrim.inference.tiling.nodes import Node
from spectrim.inference.tiling.output_factor import Second
from spectrim.layers import FactoredLinear
from spectrim.models.replace import factored_layers
from spectrim.models.targets import decoder_blocks

FEWEST = 256
"""Tokens from which on anything waits: the activations of fewer are no matter."""


@dataclass
class Tiling:
    """Deferral of one model's outputs.

    fewest: number of tokens from which on outputs are deferred. kernels: on a GPU compute
    expressions of a known form by Triton kernels.
    """

    fewest: int = FEWEST
    kernels: bool = False

    def takes(self, layer: FactoredLinear, x: Tensor) -> bool:
        """Return whether to defer: enough tokens (B, T, in) without gradients, a known kind."""
        enough = x.dim() == 3 and x.numel() >= self.fewest * x.shape[-1]
        return enough and _inferring(x) and is_readable(layer)

    def __call__(self, layer: FactoredLinear, x: Tensor) -> Tensor:
        """Return the deferred output of `layer`; its z is computed now if x is available."""
        z: Tensor | Node = layer.first(x)
        given = z.node if isinstance(z, LazyTensor) else z
        return LazyTensor(Second(layer, given, self.kernels))

    def hook(self, model: nn.Module) -> None:
        working = [b for _, b in decoder_blocks(model) if any(True for _ in factored_layers(b))]
        for module in dict.fromkeys([model, *working]):
            module.register_forward_hook(_make_outputs, prepend=True)
        inner = {m for block in working for m in block.modules()}
        for module in model.modules():
            if type(module) is nn.Embedding and module not in inner:
                module.register_forward_pre_hook(_Lookup(self))


@dataclass
class _Lookup:
    """A forward pre-hook that defers the lookup of an embedding."""

    tiling: Tiling

    def __call__(self, module: nn.Module, arguments: Any) -> Any:
        ids = arguments[0] if arguments else None
        if type(ids) is not Tensor or ids.dim() != 2:
            return None
        if ids.numel() < self.tiling.fewest or not _inferring(ids):
            return None
        return (LazyTensor(Ids(ids)), *arguments[1:])


def unhook(model: nn.Module) -> None:
    for module in model.modules():
        _remove(module._forward_hooks, lambda hook: hook is _make_outputs)
        _remove(module._forward_pre_hooks, lambda hook: isinstance(hook, _Lookup))


def _remove(hooks: Any, mine: Any) -> None:
    for key in [key for key, hook in hooks.items() if mine(hook)]:
        del hooks[key]


def _make_outputs(module: nn.Module, arguments: Any, outputs: Any) -> Any:
    """Compute all deferred outputs of the module, as a forward hook."""
    return None if torch.compiler.is_compiling() else materialize(outputs)


def _inferring(x: Tensor) -> bool:
    """Return whether there is no gradient, no compiler (it does better alone), no autocast."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
    )
