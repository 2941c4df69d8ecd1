"""Names that a model's own weight initialization reaches for while it is loaded.

After reading a checkpoint transformers lets the model initialize what is still missing (the
buffers that no checkpoint holds), and some models then touch `layer.weight` or
`experts.down_proj`, which factored layers do not have. Until loading ends they get an empty
tensor there that counts as initialized, so nothing is written to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spectrim.layers import CompactLinear
from spectrim.models.experts import SplitExperts

_LINEAR_NAMES = ("weight", "bias")
_EXPERT_NAMES = ("gate_up_proj", "up_proj", "down_proj")


def add_placeholders(model: nn.Module) -> None:
    for module, name in _places(model):
        if not hasattr(module, name):
            setattr(module, name, _stand_in(module))


def remove_placeholders(model: nn.Module) -> None:
    for module, name in _places(model):
        vars(module).pop(name, None)


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        if isinstance(module, CompactLinear):
            yield from ((module, name) for name in _LINEAR_NAMES)
        elif isinstance(module, SplitExperts):
            for name in _EXPERT_NAMES:
                yield module.activation, name
                yield module.activation, f"{name}_bias"


def _stand_in(module: nn.Module) -> Tensor:
    shape = (
        (module.out_features, module.in_features) if isinstance(module, CompactLinear) else (0,)
    )
    tensor = torch.empty(shape, device="meta")
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    return tensor
