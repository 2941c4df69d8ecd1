"""Adam's steps in the eigenbases of the layers' covariances."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spectrim.errors import InputError
from spectrim.optim.kfac_adamw import Rotation
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import balanced_parameters
from spectrim.training.eigenbasis import REQUIRES, rotations
from spectrim.training.loop import Stage
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import Schedule
from tests.contracts.test_refinements import Stop, case, same, state, statistics, tokens
from tests.tolerances import FLOAT32_RELATIVE

STAGES = {
    "block_distillation": {"epochs": 4, "out_metric": "gradient"},
    "distillation": {"tokens": 512},
}
refinements = pytest.mark.parametrize("name", STAGES)


@pytest.mark.parametrize("model", ["llama", "gpt2", "moe"])
def test_covariances_are_diagonal_in_them(model):
    given = case(model, "pivoted")
    calibration = statistics(given.original, REQUIRES)
    compressed = copy.deepcopy(given.compressed)
    with balanced_parameters(compressed) as parameters:
        found = rotations(compressed, parameters, "kfac_adamw", calibration)
        assert found
        for name, rotation in found.items():
            layer, basis = _layer_of(name, rotation, given.original)
            for side, statistic in zip(basis, REQUIRES, strict=True):
                if side is not None:
                    covariance = calibration.layer(layer)[statistic].float()
                    turned = side.T @ covariance @ side
                    rest = turned - turned.diagonal().diag()
                    assert rest.norm() < FLOAT32_RELATIVE * covariance.norm()
        factors = {
            name for name in parameters if name.endswith(("left.weight", "right.weight"))
        }
        assert factors <= set(found)


def _layer_of(name, rotation, original):
    """The layer that a parameter belongs to, and its bases on the output and input side."""
    path = name.removesuffix(".weight")
    layer, _, factor = path.rpartition(".")
    if factor in ("left", "right"):
        return layer, (rotation.left, rotation.right)
    stored = (rotation.left, rotation.right)
    return path, stored[::-1] if isinstance(original.get_submodule(path), Conv1D) else stored


def test_there_and_back_is_the_same():
    torch.manual_seed(0)
    sides = [torch.linalg.qr(torch.randn(n, n)).Q for n in (5, 7)]
    tensor = torch.randn(5, 7)
    for rotation in (Rotation(*sides), Rotation(sides[0]), Rotation(right=sides[1])):
        back = rotation.back(rotation.into(tensor))
        assert (back - tensor).norm() < FLOAT32_RELATIVE * tensor.norm()


def test_ill_conditioned_quadratic_is_solved_sooner():
    """Loss 1/2 tr(W C W^T), C with eigenvalues from 1 to 1e-4 along oblique directions."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12)).Q
    root = basis * torch.logspace(0, -2, 12)
    start = torch.randn(6, 12)
    ends = []
    for turned in ({}, {"w": Rotation(right=basis)}):
        weight = nn.Parameter(start.clone())
        loss = lambda rows, w=weight: (w @ root).square().sum()  # noqa: E731
        stage = Stage("w", {"w": weight}, loss, 1, turned, optimizer="kfac_adamw")
        TrainingRun({"w": weight}, {}, RunContext()).complete(
            [stage], Schedule(60, 1, 0.1, 0, 0, max_grad_norm=1e9)
        )
        ends.append(float((weight.detach() @ root).square().sum()))
    assert ends[1] < 0.5 * ends[0]


@pytest.mark.few(1)
@refinements
def test_loss_falls_and_a_stopped_run_ends_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)
    options = STAGES[name] | {"optimizer": "kfac_adamw"}
    whole, stopped = case("llama"), case("llama")
    for losses in whole.refine(name, **options).values():
        assert sum(losses[-2:]) < sum(losses[:2])
    place = Cache(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        stopped.refine(name, RunContext(place, Stop(3)), **options)
    stopped.refine(name, RunContext(place), **options)
    assert same(state(stopped.compressed), state(whole.compressed))


@refinements
def test_another_basis_is_another_run(name, tmp_path):
    results = []
    for basis in ("adamw", "kfac_adamw"):
        given = case("llama")
        given.refine(name, RunContext(Cache(tmp_path)), optimizer=basis, **STAGES[name])
        results.append(state(given.compressed))
    assert not same(*results)


@refinements
def test_without_statistics_it_says_what_to_give(name):
    given = case("llama")
    options = REFINEMENTS.options(name, STAGES[name] | {"optimizer": "kfac_adamw"})
    inputs = TrainingInputs(given.original, given.compressed, tokens())
    with pytest.raises(InputError, match="optimizer to 'adamw'"):
        REFINEMENTS.get(name).refine(inputs, options, RunContext())
