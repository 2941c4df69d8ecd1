"""Positives and negatives of contrastive super-resolution: sharpened, blurred, noisy copies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad


def blurred(images: Tensor, sigma: float, size: int) -> Tensor:
    """Return images (B, C, H, W) under a Gaussian kernel of odd `size`, reflected at edges."""
    reach = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
    line = (-reach.square() / (2 * sigma**2)).exp()
    kernel = torch.outer(line, line) / line.sum().square()
    channels = images.shape[1]
    framed = pad(images, [size // 2] * 4, mode="reflect")
    return conv2d(framed, kernel.expand(channels, 1, size, size), groups=channels)


def sharpened(images: Tensor, strength: float) -> Tensor:
    """Return `x + strength (x - blur(x))`, the blur of sigma 1 and size 3."""
    return images + strength * (images - blurred(images, 1.0, 3))


def contrastive_samples(
    truth: Tensor, upsampled: Tensor, copies: int = 3, noise: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Return positives and negatives, (copies + 1, B, C, H, W) each, of random strengths.

    Sharpening .5 to 5.5; blur of sigma 2 to 10 and size 3 to 11, with Gaussian noise.
    """
    draws = torch.rand(copies, 3).tolist()
    positives = [sharpened(truth, 0.5 + 5 * a).clamp(0, 1) for a, _, _ in draws]
    smooth = [blurred(truth, 2 + 8 * b, 3 + 2 * int(5 * c)) for _, b, c in draws]
    negatives = [(x + noise * torch.randn_like(x)).clamp(0, 1) for x in smooth]
    return torch.stack([truth, *positives]), torch.stack([upsampled, *negatives])
