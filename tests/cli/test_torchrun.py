"""The command line under torchrun: one plan, one output, one error line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL
from tests.tolerances import DIVERGENCE_ABSOLUTE, DIVERGENCE_RELATIVE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAILS_IN_ONE = """
import os
from spectrim.cli import main
from spectrim.errors import NumericalError
from spectrim.planning import solver

def fail(*given):
    raise NumericalError("this layer cannot be factorised")

if os.environ["RANK"] == "1":
    solver.decompose_layer = fail
main()
"""


def torchrun(*command: object) -> subprocess.CompletedProcess[str]:
    """Of two processes on this machine."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone", *command)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def options(shelf: Path, output: Path) -> tuple[object, ...]:
    return ("compress", shelf / "model", "--data", shelf / "text.txt", *SMALL, "-o", output)


def test_compress_by_two(shelf, compress, tmp_path):
    one = json.loads(compress("-o", tmp_path / "one", "--no-cache", "--json").out)["plan"]
    done = torchrun("-m", "spectrim", *options(shelf, tmp_path / "two"), "--no-cache", "--json")
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)["plan"]
    assert done.stderr.count("saved to") == 1
    assert two["layers"].keys() == one["layers"].keys()
    assert two["kept"] == pytest.approx(one["kept"], abs=1e-2)
    assert two["predicted_loss"] == pytest.approx(
        one["predicted_loss"], rel=DIVERGENCE_RELATIVE, abs=DIVERGENCE_ABSOLUTE
    )
    index = json.loads((tmp_path / "two" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "two").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) == 2


def test_compress_in_shards(shelf, compress, tmp_path):
    one = json.loads(compress("-o", tmp_path / "one", "--no-cache", "--json").out)["plan"]
    given = (*options(shelf, tmp_path / "two"), "--no-cache", "--json", "--fsdp")
    done = torchrun("-m", "spectrim", *given)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)["plan"]
    assert two["layers"].keys() == one["layers"].keys()
    assert two["kept"] == pytest.approx(one["kept"], abs=1e-2)
    assert two["predicted_loss"] == pytest.approx(
        one["predicted_loss"], rel=DIVERGENCE_RELATIVE, abs=DIVERGENCE_ABSOLUTE
    )
    assert len(list((tmp_path / "two").glob("*.safetensors"))) == 2


def test_an_error_in_one_process_ends_all(shelf, tmp_path):
    script = tmp_path / "fails_in_one.py"
    script.write_text(FAILS_IN_ONE)
    done = torchrun(script, *options(shelf, tmp_path / "out"), "--no-cache")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: this layer cannot be factorised"]
    assert set(re.findall(r"exitcode *: (-?\d+)", done.stderr)) <= {"2", "-15"}
    assert "2" in re.findall(r"exitcode *: (-?\d+)", done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fails_in_one.py"]
