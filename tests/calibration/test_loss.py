"""The summed loss of calibration against torch's own, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrim.calibration.loss import IGNORED, summed_cross_entropy


@pytest.mark.parametrize("counted", [True, False])
def test_value_and_gradient_are_those_of_torch(counted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(7, (9,), generator=generator)
    labels[2 : 4 if counted else None] = IGNORED
    labels[:2] = labels[:2] if counted else IGNORED
    expected = nn.functional.cross_entropy(
        logits, labels, reduction="sum", ignore_index=IGNORED
    )
    found = summed_cross_entropy(logits, labels)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(3 * expected, [logits])
    (other,) = torch.autograd.grad(3 * found, [logits])
    torch.testing.assert_close(other, slope)
    assert bool(slope.any()) == counted
