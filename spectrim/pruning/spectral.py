"""A layer as a weighted sum of frozen bases, whose weights are trained and scored.

    y = sum_i c_i l_i (r_i^T x) + sum_j p_j (q_j^T x) + b

l_i (out) and r_i (in) are the frozen rank-one terms of a decomposition, the singular value
folded into them; the relative coordinates c_i (1 at the start) are trained, and so are the new
bases p_j (zero at the start) and q_j. The dense weight is never formed. Memory:
(k + m) (out + in) + k numbers for k bases and m new ones; the gradient and AdamW's moments only
for the k coordinates and the new bases, unless `unfreeze` lets l_i and r_i be trained as well.

Wang et al., 2024, arXiv:2405.15877 (Basel): frozen bases, trained singular values, new bases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from spectrim.linalg.truncated import Factors


class Coordinates(nn.Module):
    """c (k,): multiplies the projections of the input on the bases, (..., k)."""

    def __init__(self, count: int):
        super().__init__()
        self.value = nn.Parameter(torch.ones(count))

    def forward(self, projections: Tensor) -> Tensor:
        return projections * self.value


class SpectralLinear(nn.Module):
    """left (out, k) and right (k, in), frozen until `unfreeze`; `new_left` (out, m),
    `new_right` (m, in)."""

    left: Tensor
    right: Tensor
    bias: Tensor | None

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("left", left.contiguous())
        self.register_buffer("right", right.contiguous())
        self.register_buffer("bias", bias)
        self.coordinates = Coordinates(right.shape[0])
        self.new_left = nn.Parameter(left.new_zeros(left.shape[0], 0))
        self.new_right = nn.Parameter(left.new_zeros(0, right.shape[1]))

    @classmethod
    def from_factors(cls, factors: Factors, bias: Tensor | None) -> SpectralLinear:
        """All terms of a decomposition, in float32, column and row of a term of equal norm."""
        balanced = factors.balanced()
        bias = None if bias is None else bias.detach().float().clone()
        return cls(balanced.left.float(), balanced.right.float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        y = linear(self.coordinates(linear(x, self.right)), self.left, self.bias)
        if self.new_left.shape[1]:
            y = y + linear(linear(x, self.new_right), self.new_left)
        return y

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def bases(self) -> int:
        return self.left.shape[1]

    @property
    def rank(self) -> int:
        return self.bases + self.new_left.shape[1]

    def singular_values(self) -> Tensor:
        """(k,): |c_i| ||l_i|| ||r_i||; of plain SVD bases the present singular values."""
        sizes = self.left.norm(dim=0) * self.right.norm(dim=1)
        return sizes * self.coordinates.value.detach().abs()

    def add_bases(self, count: int, seed: int) -> None:
        """`count` new bases: p = 0, q random of norm one, so the layer computes the same."""
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(count, self.right.shape[1], generator=generator)
        self.new_left = nn.Parameter(self.left.new_zeros(self.left.shape[0], count))
        self.new_right = nn.Parameter((random / math.sqrt(self.right.shape[1])).to(self.left))

    def unfreeze(self) -> None:
        """Make the bases parameters, which are trained as factors are."""
        for name in ("left", "right"):
            values = self._buffers.pop(name)
            assert values is not None
            self.register_parameter(name, nn.Parameter(values.clone()))

    @torch.no_grad()
    def prune(self, chosen: Tensor) -> None:
        """Only the bases at the ascending indices `chosen`; the others leave memory."""
        left, right = self.left[:, chosen].contiguous(), self.right[chosen].contiguous()
        free = isinstance(self.left, nn.Parameter)
        self.left = nn.Parameter(left) if free else left
        self.right = nn.Parameter(right) if free else right
        self.coordinates.value = nn.Parameter(self.coordinates.value.detach()[chosen].clone())

    @torch.no_grad()
    def fold(self) -> tuple[Tensor, Tensor]:
        """Return left (out, k + m), right (k + m, in) in float64, coordinates folded in."""
        left = torch.cat([self.left * self.coordinates.value, self.new_left], dim=1)
        return left.double(), torch.cat([self.right, self.new_right]).double()


@dataclass(frozen=True)
class ThinSVD:
    """left (out, r), right (r, in) with `left right` = W_hat, balanced; spectrum (r,)."""

    left: Tensor
    right: Tensor
    spectrum: Tensor


def thin_svd(left: Tensor, right: Tensor, smallest: float) -> ThinSVD:
    """SVD of `left right` from two thin QRs; singular values <= smallest * mean are dropped."""
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, s, vt = torch.linalg.svd(r_left @ r_right.T)
    count = max(1, int((s > smallest * s.mean()).sum()))
    root = s[:count].sqrt()
    return ThinSVD(
        (q_left @ u[:, :count]) * root, root[:, None] * (vt[:count] @ q_right.T), s[:count]
    )
