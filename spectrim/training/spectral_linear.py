"""`y = U diag(s) V^T x`, of which all of s and some columns of U and V are trained.

The gradients of columns i in the chosen set are those without the factor s_i (a term that is
zero would otherwise stay so):

    g_u = G v_i,    g_v = G^T u_i,    ds_i = u_i^T G v_i,     G = dL/dW

Between steps the chosen columns have length one and s is not negative. A column is chosen with
probability `(1/p + s_i / sum s) / 2`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpectralLinear(nn.Module):
    """Parameters `u` (m, p), `v` (n, p), `index` (k,), fixed; `s`, `chosen_u`, `chosen_v`."""

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None, rank: int, vectors: int):
        """Decompose weight (m, n) at `rank`; `vectors` are trained at a time."""
        super().__init__()
        u, s, v = _decomposed(weight, rank)
        self.u, self.v = (nn.Parameter(part, requires_grad=False) for part in (u, v))
        self.s = nn.Parameter(s)
        index = torch.arange(min(vectors, rank), device=weight.device)
        self.index = nn.Parameter(index, requires_grad=False)
        self.chosen_u = nn.Parameter(u[:, index])
        self.chosen_v = nn.Parameter(v[:, index])
        kept = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_parameter("bias", kept)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight(), self.bias)
        given, u, v = x.detach(), self.chosen_u, self.chosen_v
        unit = (given @ v) @ u.detach().T + (given @ v.detach()) @ u.T
        return y + (unit - unit.detach())

    def weight(self) -> Tensor:
        """Return W (m, n), differentiable in s alone."""
        u, v = self.vectors()
        return (u * self.s) @ v.T

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return U and V with the chosen columns as they are by now."""
        u = self.u.detach().index_copy(1, self.index, self.chosen_u.detach())
        return u, self.v.detach().index_copy(1, self.index, self.chosen_v.detach())

    @torch.no_grad()
    def normalize(self) -> None:
        for part in (self.chosen_u, self.chosen_v):
            part.div_(part.norm(dim=0).clamp(min=torch.finfo(part.dtype).tiny))
        self.s.clamp_(min=0)

    @property
    def rounds(self) -> int:
        """Return after how many choices every column has had its turn on average."""
        return -(-len(self.s) // len(self.index))

    @torch.no_grad()
    def decompose(self) -> None:
        """Restore orthogonality: decompose W anew, which changes it by rounding alone."""
        for part, value in zip(
            (self.u, self.s, self.v), _decomposed(self.weight(), len(self.s)), strict=True
        ):
            part.copy_(value)
        self._take()

    @torch.no_grad()
    def choose(self, generator: torch.Generator) -> None:
        """Draw other columns; those trained so far are put back."""
        for part, value in zip((self.u, self.v), self.vectors(), strict=True):
            part.copy_(value)
        chances = choice_probabilities(self.s).cpu()
        drawn = torch.multinomial(chances, len(self.index), generator=generator)
        self.index.copy_(drawn.sort().values)
        self._take()

    def _take(self) -> None:
        self.chosen_u.copy_(self.u[:, self.index])
        self.chosen_v.copy_(self.v[:, self.index])


def choice_probabilities(s: Tensor) -> Tensor:
    """Return `(1/p + s_i / sum s) / 2`."""
    share = s / s.sum().clamp(min=torch.finfo(s.dtype).tiny)
    mixed = 0.5 * (1 / len(s) + share)
    return mixed / mixed.sum()


def _decomposed(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (m, r), s (r,), v (n, r); the largest entry of each u is positive."""
    u, s, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank].T
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    parts = u * signs, s, v * signs
    return tuple(part.to(weight.dtype) for part in parts)
