"""The factors of a group, and what its curves predict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.decompositions import DECOMPOSITIONS
from spectrim.models.linear import get_weight
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.plan import decompose, probe_curves
from spectrim.planning.probe import Probe
from tests.pipeline.basis_groups.cases import recipe_for
from tests.tiny_models import tiny_tokenizer
from tests.tolerances import (
    DIVERGENCE_ABSOLUTE,
    DIVERGENCE_RELATIVE,
    FLOAT64_RELATIVE,
)


@pytest.mark.parametrize("method", ["svd_llm", "obd"])
def test_factors_are_those_of_the_stacked_whitened_weight(done, text, method):
    case = done["gqa", "adjacent"]
    recipe = recipe_for(text, "adjacent", method=method)
    found = decompose(case.model, case.calibration, recipe)
    damping = DECOMPOSITIONS.options(method).damping
    for name, members in found.groups.items():
        statistics = [case.calibration.layer(member) for member in members]
        inner = sum(s["input_covariance"] for s in statistics) / len(members)
        right = root(inner, damping)
        outer = [
            root(s["gradient_covariance"], damping)
            if method == "obd"
            else torch.eye(rows).double()
            for s, rows in zip(statistics, members.values(), strict=True)
        ]
        left = torch.block_diag(*outer)
        layers = [case.model.get_submodule(member) for member in members]
        weights = [get_weight(layer).detach().double() for layer in layers]
        u, s, v = torch.linalg.svd(left.T @ torch.cat(weights) @ right)
        for rank in (1, 5, 17):
            best = (u[:, :rank] * s[:rank]) @ v[:rank]
            dense = torch.linalg.solve(left.T, best) @ torch.linalg.inv(right)
            error = (found.factors[name].weight(rank) - dense).norm()
            assert error <= 100 * FLOAT64_RELATIVE * dense.norm()


def root(covariance: Tensor, damping: float) -> Tensor:
    mean = covariance.diagonal().mean()
    return torch.linalg.cholesky(covariance + damping * mean * torch.eye(len(covariance)))


def test_curves_price_each_member_by_its_own_statistics(done):
    case = done["llama", "adjacent"]
    name, members = next(iter(case.decomposition.groups.items()))
    factors, _ = case.decomposition.expand_groups({name: 4})
    expected = 0.0
    for member in members:
        statistics = case.calibration.layer(member)
        weight = get_weight(case.model.get_submodule(member)).detach().double()
        cut = weight - factors[member].weight(4)
        product = statistics["gradient_covariance"] @ cut @ statistics["input_covariance"]
        expected += 0.5 * float((product * cut).sum())
    assert float(case.decomposition.curves[name][4]) == pytest.approx(expected, rel=1e-6)


def test_the_probe_exchanges_groups(done, text):
    case = done["llama", "adjacent"]
    blocks = calibration_blocks(case.model, tiny_tokenizer(), recipe_for(text, "none"))
    probe = Probe(case.model, blocks, 192)
    found = probe.divergence(*case.decomposition.expand_groups(case.plan.ranks))
    with torch.no_grad():
        p = case.model(input_ids=probe.ids).logits[:, :-1].log_softmax(-1)
        q = case.compressed(input_ids=probe.ids).logits[:, :-1].log_softmax(-1)
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert found == pytest.approx(expected, rel=DIVERGENCE_RELATIVE, abs=DIVERGENCE_ABSOLUTE)


def test_curves_can_be_measured(done, text):
    case = done["gqa", "same_input"]
    recipe = recipe_for(text, "same_input")
    found = probe_curves(case.model, tiny_tokenizer(), case.decomposition, recipe)
    assert found.correction.pairs
    assert found.groups == case.decomposition.groups
    assert all((curve.diff() <= 0).all() for curve in found.curves.values())
