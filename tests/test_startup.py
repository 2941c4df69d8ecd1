"""What an import or a question to the command line may load, counted in modules."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "numpy", "accelerate", "safetensors"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after `code`."""
    report = "\nimport json, sys; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def run_by(*words: str) -> set[str]:
    """Modules loaded by a call of the command line, whatever it answers."""
    return loaded_by(
        f"import sys; sys.argv = {['spectrim', *words]}\n"
        "from spectrim.cli import main\ntry: main()\nexcept SystemExit: pass"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["compress", "--help"],
        ["compress", "--bugdet", "1"],
        ["cmprss"],
    ],
    ids=" ".join,
)
def test_questions_to_the_command_line_load_nothing_heavy(words):
    assert run_by(*words) & HEAVY == set()


def test_importing_spectrim_loads_nothing_heavy():
    assert loaded_by("import spectrim") & HEAVY == set()


def test_public_names_are_there():
    import spectrim

    assert {"compress", "Recipe", "load", "save"} <= set(dir(spectrim)) <= set(spectrim.__all__)
    assert all(getattr(spectrim, name) is not None for name in spectrim.__all__)
    with pytest.raises(AttributeError, match="no attribute 'comprss'"):
        spectrim.comprss  # noqa: B018
