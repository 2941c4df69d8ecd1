"""Attention from the factors of q, k and v, without writing q, k and v of full width."""

from __future__ import annotations

from torch import Tensor

from spectrim.errors import InputError
from spectrim.inference.kernels.dispatch import runs_kernel
from spectrim.inference.kernels.factor_spec import Second
from spectrim.inference.kernels.flash_attention import reference
from spectrim.inference.kernels.flash_attention.heads import Heads

Three = tuple[Tensor, Tensor, Tensor]


def flash_attention(
    z: Three,
    seconds: tuple[Second, Second, Second],
    heads: Heads,
    mask: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute softmax(scale q k^T) v by heads from z of q (B, T, r_q), k and v (B, S, r).

    The T queries are the last of the S positions, so that z of k and v may come from a cache:
    r_k + r_v numbers per token. mask (B, S): the real keys. rotary: cosines and sines (B or 1,
    S, width). Returns (B, T, heads x width); zero for a query that sees no key.

    Raises InputError for shapes that do not fit each other.
    """
    _check(z, seconds, heads)
    if runs_kernel(z[0]):
        from spectrim.inference.kernels.flash_attention import triton

        return triton.flash_attention(z, seconds, heads, mask, rotary)
    return reference.flash_attention(z, seconds, heads, mask, rotary)


def _check(z: Three, seconds: tuple[Second, Second, Second], heads: Heads) -> None:
    counts = (heads.queries, heads.keys, heads.keys)
    for name, part, second, count in zip("qkv", z, seconds, counts, strict=True):
        if part.shape[-1] != second.rank or second.out_features != count * heads.width:
            raise InputError(
                f"{name}: factors are {second.out_features} x {second.rank} for "
                f"{count} heads of {heads.width} and z of {part.shape[-1]}"
            )
    if z[0].shape[1] > z[1].shape[1] or heads.queries % heads.keys:
        raise InputError(
            f"{z[0].shape[1]} queries of {heads.queries} heads cannot be the last of "
            f"{z[1].shape[1]} keys of {heads.keys} heads"
        )


__all__ = ["Heads", "flash_attention"]
