"""A forgotten `import spectrim` ends in an error, and never in random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spectrim.checkpoint import export_dense, export_self_contained, load, save_compressed
from spectrim.checkpoint.import_guard import GUARD, SELF_CONTAINED, notice
from tests.checkpoint.compressing import compress
from tests.tiny_models import tiny_llama, tiny_tokens

FORGOTTEN = """
import sys
from transformers import AutoModelForCausalLM, pipeline
def piped(name):
    return pipeline("text-generation", name)
for directory in sys.argv[1:]:
    for load in (AutoModelForCausalLM.from_pretrained, piped):
        try:
            load(directory)
        except Exception as error:
            print(" ".join(str(error).split()))
        else:
            print("loaded")
assert "spectrim" not in sys.modules
"""


@pytest.fixture
def out(tmp_path) -> Path:
    model = tiny_llama()
    return save_compressed(model, None, tmp_path / "out", compress(model, "pivoted"))


@pytest.mark.slow
def test_stock_transformers_stops_with_the_sentence(out, tmp_path):
    """Also for what transformers itself saved, and for the one with its own code."""
    loaded, _ = load(out)
    loaded.save_pretrained(tmp_path / "again")
    own = export_self_contained(out, tmp_path / "own")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FORGOTTEN, str(out), str(tmp_path / "again"), str(own)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all(notice() in line for line in lines[:4]), lines
    assert all(SELF_CONTAINED in line for line in lines[4:]), lines


def test_the_sentence_does_not_reach_the_loaded_model(out):
    assert json.loads((out / "config.json").read_text())[GUARD] == notice()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert not hasattr(model.config, GUARD)
    config = AutoConfig.from_pretrained(out)
    given = AutoModelForCausalLM.from_pretrained(out, config=config)
    with torch.no_grad():
        assert torch.equal(given(tiny_tokens()).logits, model(tiny_tokens()).logits)


def test_dense_models_are_saved_as_ever(out, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "plain")
    dense = export_dense(out, tmp_path / "dense")
    for directory in (tmp_path / "plain", dense):
        assert GUARD not in json.loads((directory / "config.json").read_text())
        AutoModelForCausalLM.from_pretrained(directory)
