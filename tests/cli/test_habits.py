"""What every command does alike: JSON, colour, completion, exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from spectrim import checkpoint
from spectrim.cli.app import app

COLOR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])[0-9;]*m")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    context = group.make_context("spectrim", [], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        here = (*path, name)
        if hasattr(command, "list_commands"):
            yield from commands(command, here)
        else:
            yield here, command


@pytest.fixture
def found(cli) -> dict[tuple[str, ...], Any]:
    """All commands, by their words; one call of the program adds them to the app."""
    assert cli("--version").code == 0
    return dict(commands(typer.main.get_command(app)))


def test_every_command_and_option_says_what_it_is(found):
    for path, command in found.items():
        assert command.help, path
        assert all(p.help for p in command.params if p.param_type_name == "option"), path


def test_json_of_commands_that_write(cli, compress, monkeypatch):
    assert compress("-o", "out", "--recipe", "fast", "--no-report").code == 0
    monkeypatch.setattr(checkpoint, "activate", lambda: "here/spectrim.pth")
    monkeypatch.setattr(checkpoint, "deactivate", lambda: True)
    expected = {
        ("export", "out", "--dense", "-o", "dense"): {"saved": "dense"},
        ("activate",): {"active": True, "through": "here/spectrim.pth", "removed": False},
        ("activate", "--remove"): {"active": False, "through": None, "removed": True},
        ("recipes", "copy", "fast", "-o", "mine.yaml"): {"recipe": "mine.yaml"},
    }
    for asked, value in expected.items():
        done = cli(*asked, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out) == value
    told = json.loads(cli("report", "out", "--json").out)
    assert told["report"] == "out/spectrim_report.html"
    assert 0 < told["kept"] <= 1


def test_no_color(cli, monkeypatch):
    """Neither in help nor in tables, also where a terminal is claimed."""
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    for words in (("--help",), ("compress", "--help"), ("ls",), ("recipes", "list")):
        assert not COLOR.search(cli(*words).out), words


def test_completion(cli, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    for shell in ("bash", "zsh", "fish"):
        script = cli("--show-completion", shell).out
        assert "_SPECTRIM_COMPLETE" in script, shell
    monkeypatch.setenv("_SPECTRIM_COMPLETE", "complete_bash")
    for typed, place, expected in (
        ("spectrim comp", "1", {"compress"}),
        ("spectrim finetune --quantize", "2", {"--quantize-base"}),
    ):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", place)
        assert set(cli().out.split()) == expected


def failing(error: BaseException) -> Any:
    def command(*given: Any, **named: Any) -> Any:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] can't allocate memory"), "out of memory"),
    ],
)
def test_code_2_and_one_line(cli, monkeypatch, error, words):
    monkeypatch.setattr("spectrim.pipeline.catalog.list_methods", failing(error))
    assert words in cli("ls").failed_with_one_line()


def test_other_errors_are_not_hidden(cli, monkeypatch):
    """An error of ours: Python prints it whole, and its exit code is 1."""
    monkeypatch.setattr(
        "spectrim.pipeline.catalog.list_methods", failing(ZeroDivisionError("a bug"))
    )
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli("ls")
