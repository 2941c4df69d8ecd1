"""Drawn labels: their squared gradients and Hessian have the mean they are said to have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectrim.data.tasks import TaskRows
from spectrim.errors import InputError
from spectrim.pruning import IMPORTANCE, Objective
from spectrim.pruning.sampled_labels import sample_labels
from tests.pruning.building import rows, spectral_llama
from tests.tolerances import SAMPLED_FISHER_RELATIVE

POSITIONS = 4000


class Fixed(nn.Module):
    """The same logits (V,) before every token, far from uniform."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([4.0, 1.0, 0.0, -2.0], dtype=torch.float64))

    def forward(self, input_ids: Tensor, **more: object) -> object:
        shape = (*input_ids.shape, 4)
        return type("Output", (), {"logits": self.logits.expand(shape)})()


def _rows() -> TaskRows:
    ids = torch.zeros(8, POSITIONS // 8 + 1, dtype=torch.long)
    mask = torch.ones_like(ids, dtype=torch.bool)
    scored = mask.clone()
    scored[:, 0] = False
    return TaskRows(ids, mask, scored, "fixed", "fixed")


def _fisher(logits: Tensor, temperature: float) -> Tensor:
    p = (logits / temperature).softmax(-1).detach()
    return p.diag() - torch.outer(p, p)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_squared_gradients_are_the_fisher_information_at_the_temperature(temperature):
    model = Fixed()
    soft = sample_labels(model, Objective(_rows()), temperature, 0, "squares")
    total, count = torch.zeros(4, 4, dtype=torch.float64), 0
    for batch in soft.batches():
        for label, weight in zip(batch.labels, batch.weights, strict=True):
            p = (model.logits.detach() / temperature).softmax(-1)
            gradient = weight * (p - nn.functional.one_hot(label, 4))
            total += torch.outer(gradient, gradient)
            count += 1
    expected = _fisher(model.logits, temperature)
    assert (total / count - expected).norm() < 2 * SAMPLED_FISHER_RELATIVE * expected.norm()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_the_hessian_is_the_fisher_information_at_the_temperature(temperature):
    model = Fixed()
    soft = sample_labels(model, Objective(_rows()), temperature, 0, "hessian")
    total, count = 0.0, 0
    for batch in soft.batches():
        summed, tokens = soft.loss(model, batch)
        total, count = total + summed, count + tokens
    (first,) = torch.autograd.grad(total / count, [model.logits], create_graph=True)
    lines = [torch.autograd.grad(g, [model.logits], retain_graph=True)[0] for g in first]
    expected = _fisher(model.logits, temperature)
    away = (torch.stack(lines) - expected).norm()
    assert away < 2 * SAMPLED_FISHER_RELATIVE * expected.norm()


def test_the_flatter_proposal_has_less_noise_than_drawing_from_the_model():
    model = Fixed()
    with torch.no_grad():
        model.logits[0] = 8.0
    (labels, weights), *_ = sample_labels(model, Objective(_rows()), 1.0, 0, "squares").drawn
    rare = model.logits.softmax(-1)[1:].sum()
    assert (labels != 0).double().mean() > 20 * rare
    assert weights[labels != 0].max() < 1


def test_every_pass_sees_the_same_labels_and_seeds_differ():
    model, _ = spectral_llama()
    objective = Objective(rows(), 4)
    soft = sample_labels(model, objective, 1.0, 0, "squares")
    first, second = ([b.labels for b in soft.batches()] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = sample_labels(model, objective, 1.0, 1, "squares")
    assert not torch.equal(first[0], next(iter(other.batches())).labels)


@pytest.mark.parametrize("name", ["kronecker", "fisher", "hutchinson"])
def test_estimators_take_a_temperature(name):
    model, layers = spectral_llama()
    given = {"temperature": 2.0} | ({"probes": 1} if name == "hutchinson" else {"draws": 2})
    found = IMPORTANCE.get(name).estimate(
        model, layers, Objective(rows(), 4), IMPORTANCE.options(name, given)
    )
    assert all(scores.isfinite().all() for scores in found.scores.values())
    assert found.passes == 3


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"draws": 0}])
def test_wrong_temperatures_are_refused(wrong):
    with pytest.raises(InputError, match="temperature"):
        IMPORTANCE.options("kronecker", wrong)
