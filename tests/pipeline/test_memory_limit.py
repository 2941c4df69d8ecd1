"""`--memory` with the whole model in memory: the kernel's figure for the peak stays below."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from spectrim.pipeline.memory import bytes_of

ROOT = Path(__file__).parents[2]


def test_a_whole_model_stays_below_its_limit(tmp_path):
    """Calibration in two passes, decomposition, measured curves: 17 MiB of weights in a
    process that may hold 380 MiB more than its loaded libraries."""
    sizes = ["--hidden", "384", "--inner", "1024", "--layers", "2", "--vocabulary", "512"]
    options = "--budget 0.6 --sequences 4 --length 32 --include mlp --no-report"
    command = [sys.executable, "benchmarks/streaming_memory.py", str(tmp_path), *sizes]
    command += ["--dtype", "float32", "--beyond", "380", "--options", options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "whole model" in done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["base_mib"] < figures["peak_mib"] <= bytes_of(figures["limit"]) / 2**20
