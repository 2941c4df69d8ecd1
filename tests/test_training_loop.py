"""The loop of the training scripts stops and goes on to the same weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "scripts" / "training_loop.py"
STEPS, SAVED_AT = 7, 4


@pytest.fixture
def loop(monkeypatch):
    spec = importlib.util.spec_from_file_location("training_loop", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "training_loop", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SAVE_EVERY", SAVED_AT)
    return module


def job(loop, seen, first=0, fails_at=None):
    def loss(model, step):
        if step == fails_at:
            raise KeyboardInterrupt
        seen.append(step)
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return loop.Job(STEPS, loss, lambda step: 0.1 / (step + 1), lambda model: "checked", first)


def uncompiled(model):
    return model


def model():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def test_a_stopped_run_ends_where_an_unbroken_one_does(loop, tmp_path):
    whole = model()
    loop.train(whole, job(loop, []), tmp_path / "whole.pt", uncompiled)
    with pytest.raises(KeyboardInterrupt):
        loop.train(
            model(), job(loop, [], fails_at=STEPS - 1), tmp_path / "stopped.pt", uncompiled
        )
    steps, continued = [], model()
    loop.train(continued, job(loop, steps), tmp_path / "stopped.pt", uncompiled)
    assert steps == list(range(SAVED_AT, STEPS))
    assert torch.equal(continued.weight, whole.weight)
    assert torch.equal(continued.bias, whole.bias)
    assert not torch.equal(continued.weight, model().weight)


def test_a_run_begins_at_its_first_step_when_nothing_is_saved(loop, tmp_path, capsys):
    steps = []
    loop.train(model(), job(loop, steps, first=5), tmp_path / "state.pt", uncompiled)
    assert steps == [5, 6]
    assert not (tmp_path / "state.pt").exists()
    assert "checked" not in capsys.readouterr().out
