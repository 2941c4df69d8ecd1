"""Calibration on the loss of some tokens only: what changes, and what must not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.in_memory import Batch, summed_loss
from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.targets import find_targets
from spectrim.statistics import STATISTICS, Calibration
from tests.calibration.test_store import assert_identical
from tests.tiny_models import tiny_llama, tiny_tokens
from tests.tolerances import AUTOGRAD_RELATIVE, SAMPLED_FISHER_RELATIVE

LENGTH = 12
SETTINGS = CalibrationSettings(tuple(STATISTICS.names()), tokens_per_batch=2 * LENGTH)
LAYER = "model.layers.1.mlp.down_proj"


def blocks(scored: torch.Tensor | None) -> TokenBlocks:
    mask = torch.arange(LENGTH) < torch.tensor([12, 7, 9, 12])[:, None]
    ids = tiny_tokens(4, LENGTH) * mask
    return TokenBlocks(ids, mask, "same", "test", 4, scored=scored)


def calibrated(scored: torch.Tensor | None) -> Calibration:
    model = tiny_llama()
    return calibrate(model, find_targets(model), blocks(scored), SETTINGS)


def answers() -> torch.Tensor:
    """The last tokens of each row, from another position on in each."""
    mask = blocks(None).mask
    assert mask is not None
    return mask & (torch.arange(LENGTH) >= torch.tensor([8, 3, 5, 11])[:, None])


@pytest.fixture(scope="module")
def plain() -> Calibration:
    return calibrated(None)


@pytest.fixture(scope="module")
def on_answers() -> Calibration:
    return calibrated(answers())


def test_everything_scored_is_what_it_was_without(plain):
    assert_identical(calibrated(torch.ones(4, LENGTH, dtype=torch.bool)), plain)


def test_inputs_are_summed_over_all_tokens(plain, on_answers):
    assert on_answers.tokens == plain.tokens == 40
    assert on_answers.counts == plain.counts
    for name in SETTINGS.statistics:
        if STATISTICS.get(name).NEEDS_GRADIENT:
            continue
        for key, state in plain.states[name].items():
            for entry, tensor in state.items():
                assert torch.equal(on_answers.states[name][key][entry], tensor), (name, key)


def test_gradients_are_those_of_the_scored_loss(plain, on_answers):
    model = tiny_llama().double()
    data, scored = blocks(None), answers()
    expected = torch.zeros(32, 32, dtype=torch.float64)
    for ids, real, wanted in zip(data.ids, data.mask, scored, strict=True):
        kept: list[torch.Tensor] = []

        def keep(module, inputs, output, kept=kept):
            output.retain_grad()
            kept.append(output)

        handle = model.get_submodule(LAYER).register_forward_hook(keep)
        logits = model(input_ids=ids[real][None], use_cache=False).logits[0, :-1]
        handle.remove()
        wanted = wanted[real][1:]
        loss = nn.functional.cross_entropy(
            logits[wanted], ids[real][1:][wanted], reduction="sum"
        )
        loss.backward()
        gradient = kept[0].grad[0]
        expected += gradient.T @ gradient
    found = on_answers.states["gradient_covariance"][LAYER]["sum"]
    assert float((found - expected).norm()) <= AUTOGRAD_RELATIVE * float(expected.norm())
    other = plain.states["gradient_covariance"][LAYER]["sum"]
    assert float((found - other).norm()) > 0.1 * float(other.norm())


def test_every_second_row_keeps_its_marks():
    whole = replace(blocks(answers()), document_of_row=torch.arange(4))
    fewer = whole.every(2)
    for name in ("ids", "mask", "scored", "document_of_row"):
        assert torch.equal(getattr(fewer, name), getattr(whole, name)[::2])
    assert replace(whole, scored=None).every(3).scored is None


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sampled_labels_at_a_temperature_give_the_softened_fisher_information(temperature):
    """Logits are the parameters: the covariance of the loss's gradients is diag(p) - p p^T."""
    logits = torch.tensor([4.0, 1.0, 0.0, -2.0]).expand(8, 501, 4).clone().requires_grad_()
    ids = torch.zeros(8, 501, dtype=torch.long)
    batch = Batch(0, ids, torch.ones_like(ids, dtype=torch.bool))
    settings = CalibrationSettings((), "sampled", temperature=temperature)
    (gradient,) = torch.autograd.grad(summed_loss(logits, batch, settings), [logits])
    found = gradient[:, :-1].reshape(-1, 4)
    p = (logits.detach()[0, 0] / temperature).softmax(-1)
    expected = p.diag() - torch.outer(p, p)
    away = (found.T @ found / len(found) - expected).norm()
    assert away < 3 * SAMPLED_FISHER_RELATIVE * expected.norm()


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": 2.0}])
def test_a_temperature_is_positive_and_for_sampled_labels(wrong):
    with pytest.raises(InputError, match="temperature"):
        CalibrationSettings((), "data", **wrong)
