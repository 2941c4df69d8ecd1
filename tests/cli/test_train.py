"""`spectrim train` as a script calls it."""

from __future__ import annotations

import json

import pytest

from spectrim.checkpoint import load


@pytest.mark.slow
def test_a_model_from_scratch(cli, shelf, tmp_path):
    asked = ("train", shelf / "model", "-o", "new", "--data", shelf / "text.txt")
    size = ("--steps", 24, "--batch-size", 8, "--sequences", 32, "--length", 16)
    how = ("--method", "sltrain", "--method-option", "rank_fraction=0.5")
    how += ("--optimizer", "trion", "--optimizer-option", "rank_fraction=0.5")
    done = cli(*asked, *size, *how, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    first, last = record["losses"]
    assert last < first
    assert (record["method"], record["optimizer"], record["learning_rate"]) == (
        *("sltrain", "trion"),
        0.02,
    )
    config = load(tmp_path / "new")[0].config.quantization_config
    assert config.provenance["training"] == record
    assert {entry["kind"] for entry in config.layers.values()} == {"sparse_plus_lowrank"}


def test_errors_are_one_line(cli, shelf):
    asked = ("train", shelf / "model", "-o", "new")
    assert "give --data" in cli(*asked).failed_with_one_line()
    text = ("--data", shelf / "text.txt")
    wrong = cli(*asked, *text, "--optimizer", "adam").failed_with_one_line()
    assert "did you mean 'adamw'" in wrong
    assert "steps" in cli(*asked, *text, "--steps", 0).failed_with_one_line()
