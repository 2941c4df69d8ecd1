"""Fewer experts from the command line: planned, compressed, inspected, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL
from tests.tiny_models import tiny_mixtral, tiny_tokenizer


@pytest.fixture
def mixture(tmp_path) -> Path:
    tiny_mixtral().save_pretrained(tmp_path / "mixture")
    tiny_tokenizer().save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


@pytest.mark.slow
def test_planned_compressed_inspected_and_exported(cli, shelf, mixture, tmp_path):
    reap = ("--experts", "reap", "--set", "experts.cut_ranks=false", "--include", "experts")
    common = (*reap, "--budget", 0.5, "--data", shelf / "text.txt", "--no-probe", *SMALL)
    done = cli("plan", mixture, *common, "--json")
    assert done.code == 0, done.err
    planned = json.loads(done.out)["plan"]["experts"]
    assert [len(block["removed"]) for block in planned.values()] == [2, 2]

    out = tmp_path / "out"
    done = cli("compress", mixture, "-o", out, *common)
    assert done.code == 0, done.err
    assert "2 of 4" in done.out
    page = (out / "spectrim_report.html").read_text()
    assert "experts removed" in page
    assert all(name in page for name in planned)

    done = cli("inspect", out, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)[str(out)]["removed_experts"]
    assert found == {name: block["removed"] for name, block in planned.items()}

    done = cli("export", out, "-o", tmp_path / "dense", "--dense")
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["num_local_experts"] == 2


def test_an_unknown_order_is_one_line(cli, mixture, shelf):
    done = cli("plan", mixture, "--experts", "reep", "--data", shelf / "text.txt", *SMALL)
    assert "reap" in done.failed_with_one_line()
