"""What torchao says of missing GPU libraries is left out, and nothing else of it."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spectrim.runtime.log_filters import without_enumerations, without_gpu_libraries


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("torchao", logging.WARNING, __file__, 1, text, (), None)


@pytest.mark.parametrize("name", ["_C_mxfp8.cpython-310.so", "_C_cutlass_90a.abi3.so"])
def test_gpu_libraries(name, monkeypatch):
    line = record(f"Failed to load /site-packages/torchao/{name}: Could not load this library")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not without_gpu_libraries(line)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert without_gpu_libraries(line), "with a GPU it is a real error"


@pytest.mark.parametrize(
    "text",
    [
        "Failed to load /site-packages/torchao/_C.abi3.so: undefined symbol",
        "Skipping import of cpp extensions due to incompatible torch version",
    ],
)
def test_other_lines_stay(text):
    assert without_gpu_libraries(record(text))
    assert without_enumerations(record(text))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the lines are real errors")
def test_an_import_says_nothing():
    pytest.importorskip("torchao", reason="without torchao nothing is logged")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import spectrim.cli.compress, spectrim.pipeline.compress, torchao",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout, done.stderr) == ("", "")
