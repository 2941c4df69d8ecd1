"""Who is alive, and what the dead leave behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spectrim.runtime.cache import load_if_valid_locally
from spectrim.runtime.files import write_text
from spectrim.runtime.processes import is_dead, this_process

HOST = socket.gethostname()


@pytest.fixture
def dead() -> str:
    code = "from spectrim.runtime.processes import this_process; print(this_process())"
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def test_this_one_lives_and_another_has_ended(dead):
    assert not is_dead(this_process())
    assert is_dead(dead)
    assert is_dead(" ".join(dead.split()[:2])), "also without its start"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_number_that_was_given_again_is_another_process():
    assert is_dead(f"{os.getpid()} {HOST} 1")
    assert not is_dead(f"{os.getpid()} {HOST}")


@pytest.mark.parametrize(
    "holder", ["", "7", "x y z", "0 " + HOST, "-1 " + HOST, "99 elsewhere"]
)
def test_of_the_unknown_nothing_is_said(holder):
    assert not is_dead(holder)


@pytest.mark.parametrize(
    "act",
    [
        lambda path: write_text(path, "whole"),
        lambda path: load_if_valid_locally(path, Path.read_text),
    ],
)
def test_what_a_killed_process_was_writing_goes_with_the_next_write_or_look(
    tmp_path, dead, act
):
    path = tmp_path / "entry.json"
    path.write_text("whole")  # its writer was killed between the rename and the tidying up
    for writer in (dead, this_process(), "99 elsewhere"):
        left = tmp_path / f"entry.json.{writer.replace(' ', '~')}.abc.tmp"
        left.mkdir()
        (left / ".tmpXYZ").write_text("half")
    act(path)
    assert path.read_text() == "whole"
    remaining = [p.name for p in tmp_path.iterdir()]
    assert len(remaining) == 3
    assert not any(dead.split()[0] in name.split("~")[0] for name in remaining)


def test_a_look_where_nothing_is(tmp_path):
    assert load_if_valid_locally(tmp_path / "nowhere" / "entry.json", Path.read_text) is None
