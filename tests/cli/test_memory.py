"""`--memory`: what is said of a run that is streamed, and what it leaves behind."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest

from spectrim.checkpoint import load
from spectrim.pipeline.memory_plan import MemoryEstimate

OPTIONS = ("-o", "out", "--memory", "64GiB", "--budget", "0.6", "--no-cache")


@pytest.fixture
def too_large(monkeypatch) -> None:
    """The whole model never fits."""
    monkeypatch.setattr(MemoryEstimate, "whole", lambda estimate: 2**60)


def test_a_streamed_run_tells_its_way_and_its_memory(
    compress, too_large, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = compress(*OPTIONS)
    assert result.code == 0
    assert "memory: of 64.00 GiB, at most" in result.err
    assert "streaming block by block" in result.err
    assert re.search(r"peak memory of this process [\d,]+ MiB, limit 65,536\n", result.err)
    assert "saved to out; load it with `import spectrim`" in result.err
    assert "next: spectrim evaluate out --original" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "factors do not stay"
    names = {path.name for path in Path("out").iterdir()}
    assert {"README.md", "spectrim_recipe.yaml", "spectrim_plan.yaml"} <= names
    assert load("out")[0].config.quantization_config.layers


def test_its_figures_as_json(compress, too_large):
    result = compress(*OPTIONS, "--json")
    found = json.loads(result.out)
    assert found["plan"]["layers"]
    assert found["result"]


def test_a_dry_run_of_it_writes_nothing(compress, too_large, tmp_path):
    result = compress(*OPTIONS, "--dry-run")
    assert result.code == 0
    assert "streaming block by block" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_fits_is_compressed_as_without_a_limit(compress):
    result = compress(*OPTIONS, "--recipe", "fast", "--no-report")
    assert "whole model" in result.err
    assert "peak memory" not in result.err
    assert len(list(Path("out").glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_its_text_is_read_once_for_another_budget(compress, too_large, tmp_path):
    cached = [*OPTIONS[:-1], "--cache", tmp_path / "kept"]
    assert compress(*cached).code == 0
    [factors] = (tmp_path / "kept").glob("streamed-*/factors")
    before = {path: path.stat().st_mtime_ns for path in factors.iterdir()}
    assert compress(*cached, "--budget", "0.5", "--overwrite").code == 0
    assert {path: path.stat().st_mtime_ns for path in factors.iterdir()} == before
