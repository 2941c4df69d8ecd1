"""Planted anomalies under tiny backbones of several kinds, built from configurations."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")

from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from spectrim.errors import InputError
from spectrim.estimators import PatchAnomalyDetector

SIDE = 32
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT = {**SMALL, "intermediate_size": 64, "image_size": 24, "patch_size": 4}
DINO = {**SMALL, "image_size": SIDE, "patch_size": 4, "num_register_tokens": 4}
SWIN = {"image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1]}
SWIN |= {"num_heads": [2, 2], "window_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}
BACKBONES = {
    "vit": lambda: ViTModel(ViTConfig(**VIT)),
    "dinov2 with registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**DINO)
    ),
    "swin": lambda: SwinModel(SwinConfig(**SWIN)),
    "resnet": lambda: ResNetModel(ResNetConfig(**RESNET)),
}


def normal_images(count: int, seed: int) -> torch.Tensor:
    """Smooth gradients of any direction."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-1, 1, SIDE)
    slope = torch.randn(count, 3, 2, 1, 1, generator=generator)
    return slope[:, :, 0] * grid + slope[:, :, 1] * grid[:, None]


def spoiled(images: torch.Tensor) -> torch.Tensor:
    result = images.clone()
    pattern = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    result[:, :, 20:28, 4:12] = 3.0 * pattern
    return result


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_spoiled_region_is_found(kind):
    torch.manual_seed(0)
    detector = PatchAnomalyDetector(BACKBONES[kind](), layers=(1, 1), rotations=4)
    detector.fit(normal_images(16, 0))
    images = normal_images(6, 1)
    good, bad = detector.score_samples(images), detector.score_samples(spoiled(images))
    assert bad.max() < good.min()
    maps = detector.score_maps(spoiled(images))
    assert maps.shape == (6, SIDE, SIDE)
    inside = maps[:, 20:28, 4:12].mean((1, 2))
    assert bool((inside > 2 * maps[:, :16, 16:].mean((1, 2))).all())


def test_backbones_are_loaded_by_name_and_images_are_checked(tmp_path):
    BACKBONES["vit"]().save_pretrained(tmp_path)
    detector = PatchAnomalyDetector(str(tmp_path), rotations=1).fit(normal_images(4, 0))
    assert detector.score_samples(normal_images(2, 1)).shape == (2,)
    with pytest.raises(InputError, match=r"images \(3, 32, 32\); expected"):
        detector.fit(normal_images(1, 0)[0])
    with pytest.raises(InputError, match="of 4 hidden states; expected -4 to 3"):
        PatchAnomalyDetector(str(tmp_path), layers=(-18,)).fit(normal_images(1, 0))
    with pytest.raises(InputError, match="expected at least 1, and"):
        PatchAnomalyDetector(str(tmp_path), rotations=0).fit(normal_images(1, 0))
