"""A feed-forward layer with its hidden state written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from spectrim.inference.kernels.factor_spec import Second

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


def flash_ffn(
    up: tuple[Tensor, Second],
    gate: tuple[Tensor, Second] | None,
    down: tuple[Tensor, Tensor | None],
    activation: str,
) -> Tensor:
    act = ACTIVATIONS[activation]
    hidden = up[1].apply(up[0])
    hidden = act(hidden) if gate is None else act(gate[1].apply(gate[0])) * hidden
    return functional.linear(hidden, *down)
