"""How much every command says: `-q` and `-v`, `--json`, `NO_COLOR`, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from spectrim import checkpoint
from spectrim.cli.app import app
from spectrim.cli.logging import move_levels_first
from tests.cli.conftest import SMALL
from tests.cli.test_habits import commands

TEXT = ("--data", "TEXT")
FAST = (*TEXT, *SMALL, "--recipe", "fast")
TIMED = ("--batches", "1", "--lengths", "8", "--rounds", "1", "--steps", "1")
TRAINED = ("--length", "16", "--sequences", "8", "--steps", "1")
BRIEF = ("--length", "16", "--batch-size", "2", "--steps", "2")
CALLS: dict[str, tuple[str, ...]] = {
    "compress": ("compress", "MODEL", *FAST, "-o", "made", "--overwrite", "--no-report"),
    "plan": ("plan", "MODEL", *FAST, "--no-check-speed"),
    "evaluate": ("evaluate", "SMALLER", *TEXT, "--tokens", "200"),
    "ls": ("ls",),
    "export": ("export", "SMALLER", "--dense", "-o", "dense", "--overwrite"),
    "activate": ("activate",),
    "bench": ("bench", "MODEL", *FAST, "--eval", "TEXT", "--methods", "svd", "-o", "table"),
    "bench-speed": ("bench-speed", "SMALLER", *TIMED),
    "quantize": ("quantize", "MODEL", *TEXT, *SMALL, "-o", "paths", "--overwrite"),
    "explore": ("explore", "MODEL", *FAST),
    "finetune": ("finetune", "SMALLER", *TEXT, *TRAINED, "-o", "tuned", "--overwrite"),
    "train": ("train", "MODEL", *TEXT, *BRIEF, "-o", "trained", "--overwrite"),
    "inspect": ("inspect", "MODEL"),
    "report": ("report", "SMALLER"),
    "recipes list": ("recipes", "list"),
    "recipes show": ("recipes", "show", "fast"),
    "recipes copy": ("recipes", "copy", "fast", "--overwrite"),
}
"""A short call of every command; MODEL, SMALLER and TEXT stand for what a test has."""

WARNINGS = ("warning: ", "[W")
"""Ours, and torch's from C++ (its profiler, of a cache that was there before)."""


@pytest.fixture(scope="module")
def smaller(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("smaller") / "model"


@pytest.fixture
def ask(cli, compress, shelf, smaller, monkeypatch):
    """`ask("ls", "-q")`; a server ends at once, and no environment is changed."""
    if not smaller.exists():
        assert compress("-o", smaller, "--recipe", "fast", "--no-report").code == 0
    monkeypatch.setattr(checkpoint, "activate", lambda: "here/spectrim.pth")
    monkeypatch.setattr("http.server.HTTPServer.serve_forever", ended)
    known = {"MODEL": shelf / "model", "SMALLER": smaller, "TEXT": shelf / "text.txt"}

    def call(name: str, *options: str):
        return cli(*(known.get(word, word) for word in CALLS[name]), *options)

    return call


def ended(server: Any, *given: Any) -> None:
    raise KeyboardInterrupt


def test_there_is_a_call_of_every_command(cli):
    assert cli("--version").code == 0
    found = commands(typer.main.get_command(app))
    assert {" ".join(path) for path, _ in found} == set(CALLS)


@pytest.mark.few(5)
@pytest.mark.parametrize("name", CALLS)
def test_how_much_is_said(ask, monkeypatch, name):
    monkeypatch.setenv("NO_COLOR", "1")
    quiet, verbose = ask(name, "-q", "--json"), ask(name, "--json", "--verbose")
    assert (quiet.code, verbose.code) == (0, 0), (quiet.err, verbose.err)
    assert json.loads(quiet.out), "nothing but the result is on standard output"
    assert json.loads(verbose.out).keys() == json.loads(quiet.out).keys()
    assert all(line.startswith(WARNINGS) for line in quiet.err.splitlines()), quiet.err
    first, *_, last = verbose.err.splitlines()
    assert first.startswith("spectrim ")
    assert "torch " in first
    assert "peak memory" in last
    assert "\x1b" not in verbose.out + verbose.err


def test_the_seconds_of_a_stage(ask):
    assert "calibrating: 8 in " in ask("compress", "-v", "--no-cache").err
    usual = ask("compress", "--no-cache").err
    assert "calibrating" not in usual
    assert "saved to made" in usual


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_option_is_one_line(ask, name):
    assert "--no-such" in ask(name, "--no-such").failed_with_one_line()


def test_levels_are_read_where_they_stand():
    assert move_levels_first(["ls", "-v", "--json"]) == ["-v", "ls", "--json"]
    assert move_levels_first(["a", "--", "-q", "-v"]) == ["a", "--", "-q", "-v"]
