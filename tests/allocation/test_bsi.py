from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spectrim.allocation import AllocationRequest, LayerCurve
from spectrim.allocation.bsi import allocate
from spectrim.allocation.loss_optimal import allocate as loss_optimal
from spectrim.errors import InputError
from spectrim.registry import NoOptions


def _curve(name: str, signed: float) -> LayerCurve:
    spectrum = 0.8 ** np.arange(16.0)
    tails = np.append(np.cumsum((spectrum**2)[::-1])[::-1], 0.0)
    return LayerCurve(name, (16, 16), tails, spectrum, np.full(16, signed))


def _ranks(*curves: LayerCurve) -> dict[str, int | None]:
    return allocate(AllocationRequest(curves, 0.5, "lowrank"), NoOptions())


def test_without_first_order_effects_it_is_loss_optimal():
    request = AllocationRequest((_curve("a", 0.0), _curve("b", 0.0)), 0.5, "lowrank")
    assert allocate(request, NoOptions()) == loss_optimal(request, NoOptions())


def test_a_layer_that_the_gradient_wants_to_keep_gets_more_ranks():
    ranks = _ranks(_curve("wanted", 0.05), _curve("unwanted", -0.05))
    assert ranks["unwanted"] is not None
    assert (ranks["wanted"] or 16) > ranks["unwanted"]


def test_signed_effects_have_to_be_there():
    with pytest.raises(InputError, match="mean_gradient"):
        _ranks(replace(_curve("a", 0.0), first_order_effects=None))
