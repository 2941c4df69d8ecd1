"""Saved models load in processes that know nothing of the one that saved them.

Each process imports torch and transformers anew, which takes seconds; so one process loads
all directories of a kind, and the logits are compared here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spectrim.checkpoint import activate, export_dense, export_self_contained
from tests.tiny_models import tiny_tokens
from tests.tolerances import DENSE_EXPORT_ABSOLUTE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WITHOUT_SPECTRIM = """
import sys
class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "spectrim":
            raise ModuleNotFoundError(f"blocked {name}", name="spectrim")
sys.meta_path.insert(0, Blocker)
"""
LOAD = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
job = json.load(open(sys.argv[1]))
found = {}
for directory in job["directories"]:
    model = AutoModelForCausalLM.from_pretrained(directory, **job["options"])
    with torch.no_grad():
        found[directory] = model(torch.tensor(job["tokens"])).logits
    assert not getattr(model, "is_quantized", False)
save_file(found, job["out"])
"""


def run(tmp_path: Path, prelude: str, directories: list[Path], **options) -> dict:
    """Logits by directory from a new process that runs `prelude` and loads them all."""
    job = {"directories": [str(d) for d in directories], "tokens": tiny_tokens().tolist()}
    job |= {"options": options, "out": str(tmp_path / "out.safetensors")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "load.py").write_text(prelude + LOAD)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "load.py", "job.json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(job["out"])


def test_with_import_spectrim(saved, tmp_path):
    found = run(
        tmp_path, "import spectrim.checkpoint\n", [case.directory for case in saved.values()]
    )
    for case in saved.values():
        assert torch.equal(found[str(case.directory)], case.logits)


def test_activated(saved, tmp_path):
    """The hook alone, as `.pth` files are run when Python starts."""
    activate(tmp_path)
    prelude = f"import site, sys; site.addsitedir({str(tmp_path)!r})\n"
    prelude += "assert not {'spectrim', 'torch', 'transformers'} & set(sys.modules)\n"
    case = saved["moe", "pivoted"]
    found = run(tmp_path, prelude, [case.directory])
    assert torch.equal(found[str(case.directory)], case.logits)


def test_without_spectrim(saved, tmp_path):
    names = [("mixtral", "pivoted"), ("gpt2", "lowrank"), ("tied", "pivoted")]
    own, dense = {}, {}
    for name in names:
        own[name] = export_self_contained(saved[name].directory, tmp_path / f"own-{name[0]}")
        dense[name] = export_dense(saved[name].directory, tmp_path / f"dense-{name[0]}")
    directories = [*own.values(), *dense.values()]
    found = run(tmp_path, WITHOUT_SPECTRIM, directories, trust_remote_code=True)
    for name in names:
        assert torch.equal(found[str(own[name])], saved[name].logits)
        difference = (found[str(dense[name])] - saved[name].logits).abs().max()
        assert difference <= DENSE_EXPORT_ABSOLUTE


@pytest.mark.parametrize("blocked", [True, False])
def test_python_starts_quietly_when_activated(tmp_path, blocked):
    activate(tmp_path)
    code = WITHOUT_SPECTRIM if blocked else ""
    code += f"import site, sys; site.addsitedir({str(tmp_path)!r}); import json\n"
    code += "print(sorted({'torch', 'transformers', 'spectrim'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
