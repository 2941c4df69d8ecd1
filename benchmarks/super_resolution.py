"""Train a small upsampler on a photograph, with and without a contrast, and test on another."""

from __future__ import annotations

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss

from spectrim.nn.frequency_contrastive import (
    FrequencyContrastiveLoss,
    FrequencyEmbedding,
    contrastive_samples,
    haar_bands,
    relativistic_loss,
)


class Upsampler(nn.Module):
    """Bicubic, plus a residual of three convolutions; twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return bicubic(x, 2) + self.body(x)


def bicubic(x: Tensor, factor: float) -> Tensor:
    return interpolate(x, scale_factor=factor, mode="bicubic", antialias=factor < 1)


def photographs() -> list[Tensor]:
    images = load_sample_images().images
    return [torch.tensor(i / 255).float().permute(2, 0, 1)[None, :, :424, :640] for i in images]


def restored(weight: float, seed: int) -> tuple[float, float]:
    """PSNR in dB, and the relative error of the energy in the Haar bands, on the other
    photograph."""
    torch.manual_seed(seed)
    photograph, truth = photographs()
    network, embedding = Upsampler(), FrequencyEmbedding(width=16)
    contrast = FrequencyContrastiveLoss(embedding)
    steps = torch.optim.Adam(network.parameters(), lr=1e-3)
    teacher = torch.optim.Adam(embedding.parameters(), lr=1e-4)
    for _ in range(200):
        places = torch.randint(0, 190, (8, 2)).mul(2).tolist()
        patches = torch.cat([photograph[..., r : r + 32, c : c + 32] for r, c in places])
        small = bicubic(patches, 0.5)
        output = network(small)
        loss = l1_loss(output, patches)
        if weight:
            teacher.zero_grad()
            relativistic_loss(embedding, patches, output).backward()
            teacher.step()
            samples = contrastive_samples(patches, bicubic(small, 2))
            loss = loss + weight * contrast(output, *samples)
        steps.zero_grad()
        loss.backward()
        steps.step()
    with torch.no_grad():
        output = network(bicubic(truth, 0.5)).clamp(0, 1)
    noise = (output - truth).square().mean()
    sharp = haar_bands(output).square().mean() / haar_bands(truth).square().mean()
    return (-10 * noise.log10()).item(), abs(sharp.item() - 1)
