"""The contrastive term of super-resolution, and the samples it is given."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from spectrim.errors import InputError
from spectrim.nn.frequency_contrastive import (
    FrequencyContrastiveLoss,
    FrequencyEmbedding,
    blurred,
    contrastive_samples,
    haar_bands,
    relativistic_loss,
    sharpened,
)
from tests.tolerances import FLOAT64_RELATIVE


def problem() -> tuple[FrequencyContrastiveLoss, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    loss = FrequencyContrastiveLoss(FrequencyEmbedding(width=8)).double()
    restored, truth, upsampled = torch.rand(3, 2, 3, 16, 16).double()
    return loss, restored, *contrastive_samples(truth, upsampled)


def test_gradients_reach_the_restored_images_alone():
    loss, restored, positives, negatives = problem()
    for images in (restored, positives, negatives):
        images.requires_grad_()
    loss(restored, positives, negatives).backward()
    assert restored.grad.abs().max() > 0
    assert positives.grad is None
    assert negatives.grad is None
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_equal_similarities_cost_log_of_one_plus_the_negatives():
    loss, restored, positives, _ = problem()
    same = positives[:1].expand(5, -1, -1, -1, -1)
    value = loss(restored, positives[:1], same).item()
    assert value == pytest.approx(math.log(6), rel=FLOAT64_RELATIVE)


def test_exchanging_positives_and_negatives_raises_it():
    loss, _, positives, negatives = problem()
    restored = positives[0]
    assert loss(restored, positives, negatives) < loss(restored, negatives, positives)


def test_descent_brings_the_image_to_the_positives():
    loss, restored, positives, negatives = problem()
    image = restored.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(image, positives, negatives)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.05


def test_bands_of_a_constant_vanish_and_keep_the_energy():
    assert not haar_bands(torch.full((1, 2, 4, 4), 0.7)).any()
    image = torch.rand(1, 2, 6, 6).double()
    low = (image[..., ::2, :] + image[..., 1::2, :])[..., ::2] / 2
    low = low + (image[..., ::2, :] + image[..., 1::2, :])[..., 1::2] / 2
    energy = haar_bands(image).square().sum() + low.square().sum()
    torch.testing.assert_close(energy, image.square().sum(), rtol=FLOAT64_RELATIVE, atol=0)


def test_odd_sides_are_named():
    with pytest.raises(InputError, match="5 x 4 pixels"):
        haar_bands(torch.zeros(1, 1, 5, 4))


def test_the_embedding_learns_to_tell_real_from_blurred():
    loss, _, positives, _ = problem()
    real, fake = positives[0], blurred(positives[0], 2.0, 5)
    embedding = copy.deepcopy(loss.embedding)
    optimizer = torch.optim.Adam(embedding.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        relativistic_loss(embedding, real, fake).backward()
        optimizer.step()
    assert relativistic_loss(embedding, real, fake) < 0.3
    assert embedding.score(real).min() > embedding.score(fake).max()


def test_samples_have_their_shapes_and_range():
    _, restored, positives, negatives = problem()
    assert positives.shape == negatives.shape == (4, *restored.shape)
    assert min(positives.min(), negatives.min()) >= 0
    assert max(positives.max(), negatives.max()) <= 1


def test_sharpening_undoes_nothing_at_strength_zero_and_blur_keeps_constants():
    image = torch.rand(1, 3, 8, 8).double()
    assert torch.equal(sharpened(image, 0.0), image)
    flat = torch.full((1, 1, 16, 16), 0.3).double()
    torch.testing.assert_close(blurred(flat, 3.0, 11), flat, rtol=FLOAT64_RELATIVE, atol=0)
