"""`spectrim inspect` before and after compression, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_before_and_after(compress, cli, shelf):
    compress("-o", "out", "--budget", "0.5", "--no-report")
    data = ("--data", shelf / "text.txt", "--tokens", "600", "--length", "64")
    outcome = cli("inspect", shelf / "model", "out", *data, "--json")
    assert outcome.code == 0, outcome.err
    before, after = json.loads(outcome.out).values()
    assert [layer["name"] for layer in before["layers"]] == [x["name"] for x in after["layers"]]
    assert all(layer["rank"] is None for layer in before["layers"])
    assert any(layer["rank"] for layer in after["layers"])
    total = [sum(x["effective_rank"] for x in found["layers"]) for found in (before, after)]
    assert total[1] < total[0]
    for found in (before, after):
        assert found["hidden_states"]["matrix_entropy"] > 0
        assert [timing["tokens"] for timing in found["times"]][:3] == [128, 256, 512]


def test_the_table(cli, shelf):
    outcome = cli("inspect", shelf / "model")
    assert outcome.code == 0, outcome.err
    words = "".join(outcome.out.split())
    for word in ("effective", "stable", "tail", "plain<", "pivoted<"):
        assert word in words
    assert "entropy" not in words
    assert "│rank│" not in words, "a column in which every layer is dense"
    assert "dense" not in words


def test_a_bad_text(cli, shelf):
    message = cli("inspect", shelf / "model", "--data", "nowhere.txt").failed_with_one_line()
    assert "nowhere.txt" in message


@pytest.mark.slow
def test_compression_errors_of_a_text(compress, cli, shelf):
    compress("-o", "out", "--budget", "0.5", "--no-report", "--no-probe")
    data = ("--data", shelf / "text.txt", "--tokens", "400")
    outcome = cli("inspect", "out", *data, "--json")
    assert outcome.code == 0, outcome.err
    errors = json.loads(outcome.out)["out"]["errors"]
    assert {x["name"] for x in errors["layers"]} == {
        x["name"] for x in json.loads(outcome.out)["out"]["layers"] if x["rank"]
    }
    assert 0.5 < errors["score"] < 2, "text of the calibration's own kind"
    assert all(layer["calibrated"] > 0 for layer in errors["layers"])
    shown = cli("inspect", "out", *data)
    assert shown.code == 0, shown.err
    for word in ("calibrated", "drift", "farthest"):
        assert word in shown.out
    assert "rank correlation" in shown.err


@pytest.mark.slow
def test_without_the_original_the_rest_is_shown(compress, cli, shelf):
    compress("-o", "out", "--budget", "0.5", "--no-report", "--no-probe")
    report = json.loads(Path("out/spectrim_report.json").read_text())
    Path("out/spectrim_report.json").write_text(json.dumps(report | {"model": "nowhere"}))
    data = ("--data", shelf / "text.txt", "--tokens", "400")
    outcome = cli("inspect", "out", *data, "--json")
    assert outcome.code == 0, outcome.err
    assert "errors" not in json.loads(outcome.out)["out"]
    assert "--original" in outcome.err
    named = cli("inspect", "out", *data, "--original", "nowhere").failed_with_one_line()
    assert "nowhere" in named
    good = cli("inspect", "out", *data, "--original", shelf / "model", "--json")
    assert "errors" in json.loads(good.out)["out"]
