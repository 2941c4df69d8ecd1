"""Negative pairs beside a margin softmax of pytorch-metric-learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from spectrim.errors import InputError
from spectrim.nn.unified_negative_pairs import UnifiedNegativePairs, negative_pairs
from tests.tolerances import CONSTRAINT_FLOAT64, FLOAT64_RELATIVE

losses = pytest.importorskip("pytorch_metric_learning.losses")
BASES = {
    "cosface": lambda: losses.CosFaceLoss(num_classes=4, embedding_size=6, margin=0.2, scale=8),
    "arcface": lambda: losses.ArcFaceLoss(num_classes=4, embedding_size=6, margin=20, scale=8),
}
bases = pytest.mark.parametrize("base", BASES)


def problem(base: str, whisker: float = 1.5) -> tuple[UnifiedNegativePairs, Tensor, Tensor]:
    torch.manual_seed(0)
    loss = UnifiedNegativePairs(BASES[base]().double(), whisker)
    return loss, torch.randn(12, 6).double(), torch.arange(12) % 4


def by_the_definition(loss: UnifiedNegativePairs, z: Tensor, labels: Tensor) -> Tensor:
    """Quartiles from the sorted list, and the kept list appended to every row."""
    unit, n = normalize(z), len(z)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if labels[i] != labels[j]]
    found = [unit[i] @ unit[j] for i, j in pairs]
    ordered = sorted(x.item() for x in found)
    q1, q3 = (ordered[math.floor(q * len(found))] for q in (0.25, 0.75))
    reach = loss.whisker * (q3 - q1)
    kept = torch.stack([x for x in found if q1 - reach <= x <= q3 + reach])
    assert len(kept) < len(found)
    rows = loss.logits(z, labels)
    tiled = torch.cat([rows, loss.base_loss.scale * kept.expand(n, -1)], dim=1)
    return nn.functional.cross_entropy(tiled, labels)


@bases
def test_it_is_the_softmax_over_the_tiled_list(base):
    loss, z, labels = problem(base, whisker=0.3)
    z.requires_grad_()
    values = loss(z, labels), by_the_definition(loss, z, labels)
    torch.testing.assert_close(*values, rtol=FLOAT64_RELATIVE, atol=0)
    gradients = (torch.autograd.grad(value, z)[0] for value in values)
    torch.testing.assert_close(*gradients, rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE)


@bases
@pytest.mark.parametrize("count", [1, 5])
def test_without_negatives_it_is_the_base(base, count):
    loss, z, labels = problem(base)
    z, labels = z[:count].requires_grad_(), torch.full((count,), 2)
    values = loss(z, labels), loss.base_loss(z, labels)
    torch.testing.assert_close(*values, rtol=FLOAT64_RELATIVE, atol=0)
    gradients = (torch.autograd.grad(value, z)[0] for value in values)
    torch.testing.assert_close(*gradients, rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE)


@bases
def test_it_is_never_below_the_base(base):
    loss, z, labels = problem(base)
    assert loss(z, labels) > loss.base_loss(z, labels)


def test_opposite_pairs_weigh_nothing_at_the_published_scale():
    torch.manual_seed(0)
    base = losses.CosFaceLoss(num_classes=2, embedding_size=6, margin=0.4, scale=64).double()
    z = torch.randn(6).double()
    z, labels = torch.stack([z, -z]), torch.tensor([0, 1])
    difference = UnifiedNegativePairs(base)(z, labels) - base(z, labels)
    assert abs(difference) < CONSTRAINT_FLOAT64


def test_order_does_not_matter():
    loss, z, labels = problem("cosface")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    values = loss(z, labels), loss(z[order], labels[order])
    torch.testing.assert_close(*values, rtol=FLOAT64_RELATIVE, atol=0)


def test_infinite_whiskers_keep_all_negatives():
    _, z, labels = problem("cosface")
    _, kept = negative_pairs(z, labels, float("inf"))
    assert kept.sum() == 66 - 12
    assert 0 < negative_pairs(z, labels, 0.0)[1].sum() < kept.sum()


def test_the_regularizers_of_the_base_apply():
    from pytorch_metric_learning.regularizers import LpRegularizer

    torch.manual_seed(0)
    options = {"num_classes": 4, "embedding_size": 6, "embedding_regularizer": LpRegularizer()}
    base = losses.CosFaceLoss(**options, weight_regularizer=LpRegularizer()).double()
    z, labels = torch.randn(3, 6).double(), torch.tensor([1, 1, 1])
    values = UnifiedNegativePairs(base)(z, labels), base(z, labels)
    torch.testing.assert_close(*values, rtol=FLOAT64_RELATIVE, atol=0)


def test_other_losses_are_refused():
    with pytest.raises(InputError, match="TripletMarginLoss has no get_cosine"):
        UnifiedNegativePairs(losses.TripletMarginLoss())
    with pytest.raises(InputError, match="whisker=-1"):
        UnifiedNegativePairs(BASES["cosface"](), whisker=-1)
