"""A feed-forward layer from its factors, without writing its hidden state.

    h = act(A_g z_g) * (A_u z_u)   or   h = act(A_u z_u),      z_d = R_d h + c_d

The output is the down layer's second factor applied to z_d (T, r_d).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from spectrim.errors import InputError
from spectrim.inference.kernels.dispatch import runs_kernel
from spectrim.inference.kernels.factor_spec import Second
from spectrim.inference.kernels.flash_ffn import reference

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Part = tuple[Tensor, Second]
"""z (..., r) of one factored layer, and its second factor."""


def flash_ffn(
    up: Part,
    gate: Part | None,
    down: tuple[Tensor, Tensor | None],
    activation: Activation,
) -> Tensor:
    """Return z_d (..., r_d).

    down: the first factor (r_d, hidden) of the layer that reads h, and its bias. Raises
    InputError for an unknown activation or widths that differ.
    """
    if activation not in reference.ACTIVATIONS:
        known = ", ".join(reference.ACTIVATIONS)
        raise InputError(f"unknown activation '{activation}'; available: {known}")
    widths = {part[1].out_features for part in (up, gate) if part} | {down[0].shape[1]}
    if len(widths) > 1:
        raise InputError(f"hidden widths differ: {sorted(widths)}")
    if runs_kernel(up[0]):
        from spectrim.inference.kernels.flash_ffn import triton

        return triton.flash_ffn(up, gate, down, activation)
    return reference.flash_ffn(up, gate, down, activation)
