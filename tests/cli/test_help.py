"""Every command's help and the tables at 80 columns: names whole, brackets kept, no emoji."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer

from spectrim.cli import console
from spectrim.cli.app import COMMANDS, app
from spectrim.cli.help import WIDTH, definitions, help_page

EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf]")
WORDS = ([], *([name] for name in COMMANDS), ["recipes", "list"], ["recipes", "copy"])


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def found(words: list[str]) -> tuple[Any, Any]:
    """The command of these words and its context."""
    command = typer.main.get_command(app)
    context = command.make_context("spectrim", [], resilient_parsing=True)
    for word in words:
        command = command.get_command(context, word)
        context = command.make_context(word, [], context, resilient_parsing=True)
    return command, context


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_at_80_columns(words):
    command, context = found(words)
    page = help_page(command, context)
    assert not EMOJI.search(page)
    assert max(map(len, page.splitlines())) <= WIDTH
    flat = " ".join(page.split())
    for parameter in command.get_params(context):
        if not (record := parameter.get_help_record(context)):
            continue
        assert " ".join((parameter.help or "").split()) in flat, parameter.name
        assert all(option in page for option in (*parameter.opts, *parameter.secondary_opts))
        assert len(record) == 2


def test_words_that_markup_would_eat(cli):
    assert "arithmetic:train:2000" in cli("compress", "--help").out
    assert "METHOD[/ALLOCATION[/LAYER]][+REFINEMENT...]" in cli("bench", "-h").out


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_both_ways_to_ask(cli, asked):
    for words in ([], ["plan"], ["recipes"], ["recipes", "show"]):
        done = cli(*words, asked)
        assert (done.code, done.out[:7]) == (0, "Usage: "), words


def test_tables_keep_names_and_brackets(capfd, monkeypatch):
    monkeypatch.setattr(console.OUTPUT, "_width", WIDTH)
    names = ["model.layers.0.self_attn.q_proj_of_a_very_long_name", "loss_optimal[x x^T]"]
    rows = [(name, "a text of several words that may wrap", "1.5") for name in names]
    console.table("run[best] :train:", ("layer", "what", "loss"), rows)
    shown = capfd.readouterr().out
    assert all(name in shown for name in names)
    assert "run[best] :train:" in shown


def test_ls_shows_equations_and_whole_names(cli):
    shown = cli("ls").out
    assert not EMOJI.search(shown)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "E[x x^T]" in " ".join(shown.split())
    assert all(f"  {name} " in shown for name in ("loss_optimal", "block_distillation"))


def test_features_that_do_not_combine(cli):
    shown = " ".join(cli("ls", "--compatibility").out.split())
    assert "latency + pruning pruning counts weights, not time" in shown


def test_short_names_of_layers():
    names = ["model.layers.0.attn.q", "model.layers.1.mlp.up"]
    assert console.short_names(names) == ["0.attn.q", "1.mlp.up"]
    assert console.short_names(["model.layers.0.attn.q"]) == ["model.layers.0.attn.q"]


def test_definitions_never_break_a_word():
    long = "x" * 70
    assert definitions([("term", f"see {long} there")], WIDTH)[1].strip() == long
