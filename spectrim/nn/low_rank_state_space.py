"""Low-rank state space: `h_t = U (V^T h_{t-1}) + B x_t`, `y_t = C h_t + D x_t`, U, V (N, r).

The state map `A = U V^T` of a dense recurrence at rank r: 2 N r numbers and products per step
in place of N^2; r = N is the dense one. With four scans (rows and columns, both ways) it reads
images (B, H, W, d), as SS2D does, with one scan sequences (B, L, d). `truncated(r)` cuts a
trained module to a student, whose losses against its teacher `structure_losses` gives:

    L = L_task + 0.5 ||U V^T - A_r||^2 + 0.1 mean_t |h_t - h'_t|^2 + 1.5 mean |y - y'|^2

A_r is the truncated SVD of the teacher's A. The source compares U and V one by one, which
punishes `U R, V R^-T` for being the same map; `gauge_free=False` does so too. In Mamba and
VMamba A is diagonal, with nothing to cut: their projections are ordinary layers, which
`spectrim compress` factors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrim.errors import InputError
from spectrim.nn._scans import scan, unscan

REFERENCE = "2026, arXiv:2603.06920"
SHARES = {"map": 0.5, "states": 0.1, "outputs": 1.5}
"""Weights of the losses beside the task's."""


class LowRankStateSpace(nn.Module):
    """Parameters, one per scan: `left`, `right` (K, N, r), `inputs` (K, N, d), `outputs`
    (K, d, N); `skip` (d,). radius: the largest singular value of A at the start, below 1."""

    def __init__(
        self,
        features: int,
        state: int,
        rank: int | None = None,
        scans: int = 1,
        radius: float = 0.95,
    ):
        super().__init__()
        rank = state if rank is None else rank
        if not 0 < rank <= state or scans not in (1, 4) or not 0 < radius < 1:
            raise InputError(
                f"rank is {rank} of {state} states, {scans} scans, radius {radius}; expected "
                "1 to the states, 1 or 4, and between 0 and 1"
            )
        self.radius = radius
        maps = torch.linalg.qr(torch.randn(scans, state, state)).Q * radius
        u, v = _balanced(maps, rank)
        self.left, self.right = nn.Parameter(u), nn.Parameter(v)
        self.inputs = nn.Parameter(torch.randn(scans, state, features) / features**0.5)
        self.outputs = nn.Parameter(torch.randn(scans, features, state) / state**0.5)
        self.skip = nn.Parameter(torch.ones(features))

    @property
    def rank(self) -> int:
        return self.left.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, d) with one scan, (B, H, W, d) with four, to the same shape."""
        return self.run(x)[0]

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs, of the shape of x, and the states (B, K, L, N) of every scan."""
        wide = torch.promote_types(x.dtype, torch.float32)
        states = self.states(scan(x.to(wide), len(self.left)))
        found = torch.einsum("kdn,bkln->bkld", self.outputs.to(wide), states)
        return (unscan(found, x) + self.skip * x).to(x.dtype), states

    def states(self, sequences: Tensor) -> Tensor:
        """Return the states (B, K, L, N) of sequences (B, K, L, d), one step after another."""
        parts = self.inputs, self.left, self.right
        inputs, left, right = (part.to(sequences.dtype) for part in parts)
        driven = torch.einsum("knd,bkld->bkln", inputs, sequences)
        state, found = torch.zeros_like(driven[:, :, 0]), []
        for step in driven.unbind(2):
            inner = torch.einsum("knr,bkn->bkr", right, state)
            state = torch.einsum("knr,bkr->bkn", left, inner) + step
            found.append(state)
        return torch.stack(found, 2)

    def maps(self) -> Tensor:
        """Return A (K, N, N)."""
        return self.left @ self.right.mT

    def truncated(self, rank: int) -> LowRankStateSpace:
        """Return a copy with A cut to `rank` by its SVD, balanced."""
        scans, state, features = self.inputs.shape
        student = LowRankStateSpace(features, state, rank, scans).to(self.left)
        with torch.no_grad():
            left, right = _balanced(self.maps(), rank)
            student.left.copy_(left)
            student.right.copy_(right)
            for name in ("inputs", "outputs", "skip"):
                getattr(student, name).copy_(getattr(self, name))
        return student

    def extra_repr(self) -> str:
        scans, state, features = self.inputs.shape
        return (
            f"features={features}, state={state}, rank={self.rank}, scans={scans}, "
            f"radius={self.radius:g}"
        )


def structure_losses(
    student: LowRankStateSpace, teacher: LowRankStateSpace, x: Tensor, gauge_free: bool = True
) -> dict[str, Tensor]:
    """Return the weighted losses beside the task's; their sum is zero for equal modules."""
    with torch.no_grad():
        wanted, expected = teacher.run(x)
        u, v = _balanced(teacher.maps(), student.rank)
    found, states = student.run(x)
    if gauge_free:
        away = (student.maps() - u @ v.mT).square().sum()
    else:
        away = (student.left - u).square().sum() + (student.right - v).square().sum()
    losses = {"map": away, "states": (states - expected).square().mean()}
    losses["outputs"] = (found - wanted).square().mean()
    return {name: SHARES[name] * loss for name, loss in losses.items()}


def _balanced(maps: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return `U sqrt(S)` and `V sqrt(S)` (K, N, r); the largest entry of a u is positive."""
    u, s, v = torch.linalg.svd(maps.detach())
    u, v, root = u[..., :rank], v.mT[..., :rank], s[..., None, :rank].sqrt()
    signs = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    return u * signs * root, v * signs * root


MODULE = LowRankStateSpace


def example() -> tuple[LowRankStateSpace, tuple[Tensor]]:
    """Return a module of four scans, and an image."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64)
    return LowRankStateSpace(4, 6, 2, scans=4).double(), (x.requires_grad_(),)
