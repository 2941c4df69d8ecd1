"""The distributions hold the whole package; the wheel runs without the repository."""

from __future__ import annotations

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("spectrim", "spectrim_vllm")
FILES = (
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with the wheel and the source distribution of the working tree."""
    for name in ("build", "setuptools"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}, of the extra 'test'")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in FILES:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def wheel(built):
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def _tree() -> set[str]:
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    return {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}


def _information(wheel, name: str) -> str:
    [path] = [each for each in wheel.namelist() if each.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == _tree()
    for name in ("py.typed", "planning/__init__.pyi", "report/template/page.html.j2"):
        assert f"spectrim/{name}" in names
    assert "spectrim/assets/reference/model.safetensors" in names


def test_the_source_distribution_holds_them_as_well(built):
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert _tree() | set(FILES) <= names
    assert not any(name.startswith("tests/") for name in names)


def test_the_wheel_declares_its_command_and_the_plug_in(wheel):
    points = configparser.ConfigParser()
    points.read_string(_information(wheel, "entry_points.txt"))
    assert dict(points["console_scripts"]) == {"spectrim": "spectrim.cli:main"}
    assert dict(points["vllm.general_plugins"]) == {"spectrim": "spectrim_vllm:register"}
    assert "License-Expression: Apache-2.0" in _information(wheel, "METADATA")


def test_the_wheel_runs_without_the_repository(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = (
        "import spectrim, spectrim.planning, spectrim.pruning; "
        "assert spectrim.planning.Plan and spectrim.pruning.__all__; "
        "import sys; sys.argv = ['spectrim', 'ls']; "
        "from spectrim.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "svd_llm" in done.stdout
