"""One checkpoint of all sizes from the command line: made, measured, timed, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spectrim.checkpoint import load
from spectrim.pipeline import elastic_size
from tests.cli.conftest import SMALL

RANGE = ("--elastic", "0.4..0.9")


@pytest.fixture
def elastic(cli, shelf, tmp_path) -> Path:
    out = tmp_path / "elastic"
    data = ("--data", shelf / "text.txt", "--no-probe")
    done = cli("compress", shelf / "model", "-o", out, *RANGE, *data, *SMALL)
    assert done.code == 0, done.err
    assert "sizes 0.4 to 0.9" in done.err
    assert "the file holds" in done.err
    return out


@pytest.mark.slow
def test_made_measured_timed_and_exported(cli, shelf, elastic, tmp_path, monkeypatch):
    assert (elastic / "spectrim_report.html").is_file()
    assert "0.4..0.9" in (elastic / "README.md").read_text()
    text = ("--data", shelf / "text.txt", "--tokens", 400)
    done = cli("evaluate", elastic, *text, "--budget", 0.5, "--budget", 0.9, "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert list(figures) == [f"{elastic} at 0.5", f"{elastic} at 0.9"]
    small, large = figures.values()
    assert small["parameters"] < large["parameters"]
    assert small["disk_bytes"] == large["disk_bytes"]

    quick = ("--batches", 1, "--lengths", 8, "--rounds", 3, "--steps", 2, "--json")
    done = cli("bench-speed", elastic, "--budget", 0.5, *quick)
    assert done.code == 0, done.err
    fixed = tmp_path / "fixed"
    done = cli("export", elastic, "-o", fixed, "--budget", 0.6, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"saved": str(fixed), "budget": 0.6}
    plan = load(fixed)[0].config.quantization_config.provenance["plan"]
    assert plan["budget"] == 0.6
    monkeypatch.setattr(elastic_size, "budget_for_latency", lambda name, latency: latency)
    wishes = {("--size", "1MB"): "0.9000", ("--latency-budget", 0.7): "0.7000"}
    for number, (wish, budget) in enumerate(wishes.items()):
        done = cli("export", elastic, "-o", tmp_path / f"by{number}", *wish)
        assert done.code == 0, done.err
        assert f"budget {budget}" in done.err
    done = cli("export", elastic, "-o", tmp_path / "dense", "--dense", "--budget", 0.5)
    assert done.code == 0, done.err

    page = tmp_path / "page.html"
    asked = ("--budget", 0.5, "--original", shelf / "model", "--data", shelf / "text.txt")
    done = cli("report", elastic, *asked, "--prompt", "abc", "-o", page, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["kept"] == pytest.approx(plan_at(elastic, 0.5)["kept"])
    assert report["measured_divergence"] > 0
    assert "The same prompt" in page.read_text()

    refused = {
        ("report", elastic, "--budget", 0.5): "name it with -o",
        ("report", fixed, "--budget", 0.5, "-o", page): "has one size",
        ("evaluate", fixed, *text, "--budget", 0.5): "has one size",
        ("export", fixed, "-o", tmp_path / "x", "--budget", 0.5): "has one size",
        ("export", elastic, "-o", tmp_path / "x"): "choose one of",
        ("export", elastic, "-o", tmp_path / "x", "--budget", 0.2): "0.4 to 0.9",
        ("export", elastic, "-o", tmp_path / "x", "--budget", 0.5, "--size", "1MB"): "one of",
        ("export", elastic, "-o", tmp_path / "x", "--self-contained"): "several sizes",
        (
            "export",
            elastic,
            "-o",
            tmp_path / "x",
            "--self-contained",
            "--budget",
            0.5,
        ): "cannot be combined",
    }
    for command, message in refused.items():
        assert message in cli(*command).failed_with_one_line()


def plan_at(directory: Path, budget: float) -> dict:
    model, _ = load(directory, budget=budget)
    return model.config.quantization_config.provenance["plan"]


REFUSED = {
    ("--elastic", "0.4"): "like 0.4..0.9",
    ("--elastic", "0.9..0.4"): "must be below",
    ("--elastic", "0.4..0.9", "--budget", "0.5"): "choose one of --budget and --elastic",
    ("--elastic", "0.4..0.9", "--refine", "finetune"): "distillation, which trains all sizes",
    ("--elastic", "0.1..0.2", "--quantize", "int8", "--layer", "pivoted"): "hold for one rank",
    ("--elastic", "0.1..0.2", "--quantize", "int4-gptq"): "hold for one rank",
    ("--elastic", "0.4..0.9", "--target-loss", "0.1"): "cannot be combined",
    ("--elastic", "0.4..0.9", "--memory", "6GiB"): "cannot be combined",
    ("--elastic", "0.4..0.9", "--layer", "sparse_dictionary"): "cannot be combined",
    ("--elastic", "0.4..0.9", "--allocation", "uniform"): "cannot be combined",
}


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_what_does_not_combine_is_refused_before_the_work(cli, shelf, tmp_path, options):
    data = ("--data", shelf / "text.txt")
    done = cli("compress", shelf / "model", "-o", tmp_path / "out", *data, *options)
    assert REFUSED[options] in done.failed_with_one_line()
    assert not (tmp_path / "out").exists()


def test_quantized_sizes(cli, shelf, tmp_path):
    out, fixed = tmp_path / "elastic", tmp_path / "fixed"
    data = ("--data", shelf / "text.txt", "--no-probe", "--no-report")
    bits = ("--elastic", "0.1..0.25", "--quantize", "int8")
    done = cli("compress", shelf / "model", "-o", out, *bits, *data, *SMALL)
    assert done.code == 0, done.err
    text = ("--data", shelf / "text.txt", "--tokens", 400)
    done = cli("evaluate", out, *text, "--budget", 0.12, "--budget", 0.25, "--json")
    assert done.code == 0, done.err
    done = cli("export", out, "-o", fixed, "--budget", 0.2)
    assert done.code == 0, done.err
    entry = load(fixed)[0].config.quantization_config
    assert entry.inner["base"] == "rtn"
    assert entry.inner["options"]["bits"] == 8
