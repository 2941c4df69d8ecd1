"""Contrastive super-resolution: `L = mean_p log(1 + sum_n e^{(sim_n - sim_p) / t})`.

sim: cosine over channels, averaged over pixels, between features of the restored image and of a
positive (the ground truth and sharpened copies) or a negative (the upsampled input and blurred,
noisy copies). The features are those of a discriminator fed with Haar bands, whose own loss is
relativistic; `t` is the temperature. The loss is meant to be added to L1 with a small weight:
at .1 of a small network it was unstable.

Gradients reach the restored image alone. The released code embeds that image without gradients,
so that its contrastive term trains nothing; here the samples and the embedding are constants of
the loss, and the image is not. JPEG degradation is left to the caller. Cost: one pass of the
embedding per sample. Source: Wu et al., 2023, arXiv:2111.13924 (PCL-SR).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, leaky_relu, softplus

from spectrim.errors import InputError
from spectrim.nn._augmentations import blurred, contrastive_samples, sharpened

REFERENCE = "Wu et al., 2023, arXiv:2111.13924 (PCL-SR)"


def haar_bands(images: Tensor) -> Tensor:
    """Return the bands LH, HL, HH of (B, C, H, W), H and W even: (B, 3 C, H / 2, W / 2)."""
    if images.shape[-2] % 2 or images.shape[-1] % 2:
        raise InputError(
            f"images of {images.shape[-2]} x {images.shape[-1]} pixels; Haar bands need even "
            "sides: crop a row or a column"
        )
    a, b = images[..., ::2, ::2], images[..., ::2, 1::2]
    c, d = images[..., 1::2, ::2], images[..., 1::2, 1::2]
    return torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], dim=1) / 2


class FrequencyEmbedding(nn.Module):
    """Discriminator on Haar bands: 7 convolutions (3 x 3), LeakyReLU(.2), and a score."""

    def __init__(
        self, channels: int = 3, width: int = 32, taps: tuple[int, ...] = (0, 2, 4, 6)
    ):
        super().__init__()
        self.taps = taps
        widths = [3 * channels, *[width] * 7]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features before LeakyReLU of the layers `taps`, each (B, width, h, w)."""
        return [outputs for i, outputs in enumerate(self._outputs(images)) if i in self.taps]

    def score(self, images: Tensor) -> Tensor:
        """Return how real each image looks, a logit (B,)."""
        return self.head(leaky_relu(self._outputs(images)[-1], 0.2)).mean((1, 2, 3))

    def _outputs(self, images: Tensor) -> list[Tensor]:
        outputs = [self.layers[0](haar_bands(images))]
        for layer in self.layers[1:]:
            outputs.append(layer(leaky_relu(outputs[-1], 0.2)))
        return outputs


def relativistic_loss(embedding: FrequencyEmbedding, real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss: real images look more real than the mean fake one."""
    a, b = embedding.score(real), embedding.score(fake.detach())
    return (softplus(b.mean() - a).mean() + softplus(b - a.mean()).mean()) / 2


class FrequencyContrastiveLoss(nn.Module):
    """The contrastive term of restored images (B, C, H, W).

    embedding: a module that maps images to a list of feature maps (B, c, h, w).
    """

    def __init__(self, embedding: nn.Module, temperature: float = 1.0):
        super().__init__()
        self.embedding = embedding
        self.temperature = temperature

    def forward(self, restored: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the loss for positives (P, B, C, H, W) and negatives (N, B, C, H, W)."""
        count = len(positives)
        with torch.no_grad():
            samples = torch.cat([positives, negatives])
            references = self._embed(samples.flatten(0, 1))
        losses = []
        for anchor, flat in zip(self._embed(restored), references, strict=True):
            others = flat.unflatten(0, samples.shape[:2])
            near = cosine_similarity(anchor, others, dim=2).mean((-2, -1)) / self.temperature
            losses.append(softplus(near[count:].logsumexp(0) - near[:count]).mean())
        return torch.stack(losses).mean()

    def _embed(self, images: Tensor) -> list[Tensor]:
        fixed = {name: p.detach() for name, p in self.embedding.named_parameters()}
        return functional_call(self.embedding, fixed, (images,))

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"


MODULE = FrequencyContrastiveLoss
__all__ = [
    "FrequencyContrastiveLoss",
    "FrequencyEmbedding",
    "blurred",
    "contrastive_samples",
    "haar_bands",
    "relativistic_loss",
    "sharpened",
]


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    module = FrequencyContrastiveLoss(FrequencyEmbedding(channels=1, width=4))
    module.requires_grad_(False)
    images = torch.rand(6, 2, 1, 8, 8)
    return module, (images[0].clone().requires_grad_(), images[1:3], images[3:])
