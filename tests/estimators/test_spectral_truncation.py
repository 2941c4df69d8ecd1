"""The cut head against its identities; the probe on planted label noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from spectrim.errors import InputError, NumericalError
from spectrim.estimators import SpectralProbe, truncate_head
from tests.tolerances import FLOAT32_RELATIVE


def features(count: int = 60, width: int = 12) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)) + 2


def head(bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(12, 6, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
def test_all_directions_give_back_the_logits(bias):
    full = truncate_head(head(bias), features(), 12)
    torch.testing.assert_close(
        full(features()), head(bias)(features()), rtol=FLOAT32_RELATIVE, atol=1e-5
    )


def test_the_head_has_the_rank_and_keeps_the_mean_logits():
    cut = truncate_head(head(), features(), 3)
    assert int(torch.linalg.matrix_rank(cut.weight.double(), rtol=1e-5)) == 3
    mean = features().mean(0)
    torch.testing.assert_close(cut(mean), head()(mean), rtol=FLOAT32_RELATIVE, atol=1e-5)


def test_features_of_low_rank_lose_nothing():
    low = features()[:, :4] @ features(4)
    cut = truncate_head(head(), low, 4)
    torch.testing.assert_close(cut(low), head()(low), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="expected 1 to that many"):
        truncate_head(head(), low, 13)
    with pytest.raises(InputError, match=r"expected \(n, 12\), the inputs of the head"):
        truncate_head(head(), low[:, :5], 3)
    with pytest.raises(NumericalError, match="features"):
        truncate_head(head(), low * float("nan"), 3)


def noisy_classes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four classes in three strong directions of 100; 40% of the labels are drawn anew."""
    random = np.random.default_rng(seed)
    truth = random.integers(4, size=400)
    centers = 3 * np.linalg.qr(np.random.default_rng(9).normal(size=(100, 4)))[0].T
    rows = centers[truth] + random.normal(size=(400, 100)) * 0.7
    wrong = random.random(400) < 0.4
    return rows, np.where(wrong, random.integers(4, size=400), truth), truth


def test_leading_directions_hold_the_classes_and_not_the_noise():
    rows, labels, _ = noisy_classes(0)
    new, _, truth = noisy_classes(1)
    probe = SpectralProbe(ranks=(100,)).fit(rows, labels)
    curve = probe.curve(new, truth)
    assert probe.rank_ == 4
    assert curve[4] > curve[100] + 0.1
    assert probe.score(new, truth) == curve[4]


def test_the_curve_does_not_depend_on_the_coordinates():
    rows, labels, truth = noisy_classes(0)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(100, 100)))[0]
    plain = SpectralProbe(ranks=(2, 8)).fit(rows, labels).curve(rows, truth)
    turned = SpectralProbe(ranks=(2, 8)).fit(rows @ turn, labels).curve(rows @ turn, truth)
    assert plain.keys() == {2, 4, 8}
    assert list(turned.values()) == pytest.approx(list(plain.values()), abs=0.01)


def test_the_rank_may_be_the_effective_one():
    rows = np.random.default_rng(0).normal(size=(200, 3)) @ np.eye(3, 9)
    assert SpectralProbe("effective").fit(rows, np.arange(200) % 2).rank_ == 3
    with pytest.raises(InputError, match="expected a positive number"):
        SpectralProbe("best").fit(rows, np.arange(200) % 2)
