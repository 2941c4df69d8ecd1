"""Images and the patch features that a vision backbone makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from spectrim.errors import InputError

BLUR_SIZE, BLUR_SIGMA = 3, 4.0


def as_grid(states: Tensor, size: Sequence[int], patch: int) -> Tensor:
    """Arrange hidden states as (n, rows, columns, d), class and register tokens dropped.

    Special tokens come first; later stages of hierarchical models have patches of 2, 4, ..
    times the side. Raises InputError if no grid fits.
    """
    if states.dim() == 4:
        return states.movedim(1, 3)
    height, width = size
    while patch <= min(size):
        rows, columns = height // patch, width // patch
        if rows * columns <= states.shape[1]:
            return states[:, -rows * columns :].unflatten(1, (rows, columns))
        patch *= 2
    raise InputError(f"{states.shape[1]} tokens for an image of {height} x {width} pixels")


def rotate(images: Tensor, angle: float) -> Tensor:
    """Turn images (n, c, h, w) about their center, mirrored at the border."""
    if angle == 0:
        return images
    cos, sin = float(torch.tensor(angle).cos()), float(torch.tensor(angle).sin())
    ratio = images.shape[2] / images.shape[3]
    turn = torch.tensor([[cos, -sin * ratio, 0.0], [sin / ratio, cos, 0.0]])
    grid = functional.affine_grid(
        turn.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def blur(maps: Tensor) -> Tensor:
    """Apply the Gaussian kernel of the published runs to (n, 1, h, w)."""
    offset = torch.arange(BLUR_SIZE, dtype=maps.dtype) - BLUR_SIZE // 2
    weights = torch.exp(-offset.square() / (2 * BLUR_SIGMA**2))
    kernel = torch.outer(weights, weights)
    padded = functional.pad(maps, [BLUR_SIZE // 2] * 4, mode="reflect")
    return functional.conv2d(padded, (kernel / kernel.sum())[None, None])
