"""`--memory`, whole and streamed: the kernel says that the process stays below its limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spectrim import checkpoint
from spectrim.pipeline.memory_plan import bytes_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def measured(directory: Path, beyond: int, options: str, **sizes: int) -> tuple[Any, str]:
    """Figures, and what the command said: a Llama of these sizes compressed in a process of its
    own that may hold so many MiB more than the loaded libraries (about 500 MiB)."""
    command = [sys.executable, "benchmarks/streaming_memory.py", str(directory)]
    for name, size in sizes.items():
        command += [f"--{name}", str(size)]
    command += ["--dtype", "float32", "--beyond", str(beyond), "--options", options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_whole_model_stays_below_its_limit(tmp_path):
    """Calibration in two passes, decomposition, measured curves of 17 MiB of weights."""
    options = "--budget 0.6 --sequences 4 --length 32 --include mlp --no-report"
    sizes = {"hidden": 384, "inner": 1024, "layers": 2, "vocabulary": 512}
    figures, said = measured(tmp_path, 380, options, **sizes)
    assert "whole model" in said
    assert figures["base_mib"] < figures["peak_mib"] <= bytes_of(figures["limit"]) / 2**20


def test_a_streamed_model_stays_below_a_limit_that_its_checkpoint_exceeds(tmp_path):
    """72 blocks of 5.5 MiB."""
    options = "--recipe fast --sequences 4 --length 32 --include k_proj --include v_proj"
    sizes = {"hidden": 512, "inner": 512, "layers": 72, "vocabulary": 512}
    figures, said = measured(tmp_path, 128, options, **sizes)
    assert "streaming block by block" in said
    assert figures["checkpoint_mib"] > 3 * 128
    assert figures["peak_mib"] <= bytes_of(figures["limit"]) / 2**20
    model, _ = checkpoint.load(tmp_path / "small")
    assert len(model.config.quantization_config.layers) > 0
