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
        names = (*parameter.opts, *parameter.secondary_opts)
        argument = parameter.param_type_name == "argument"
        assert all((name.upper() if argument else name) in page for name in names)
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


REFUSED = {
    "quantize": {
        "--ratio": "0.2",
        "--budget": "0.8",
        "--layer": "pivoted",
        "--refine": "distillation",
        "--optimizer": "muon",
        "--learning-rate": "1e-3",
        "--no-probe": None,
        "--quantize": "int8",
        "--latency-budget": "0.7",
        "--elastic": "0.4..0.9",
        "--experts": "reap",
    },
    "explore": {"--latency-budget": "0.7", "--elastic": "0.4..0.9", "--experts": "reap"},
}
"""Recipe options that a command answers with an error, with a value that is right elsewhere."""


@pytest.mark.parametrize(
    ("command", "option"), [(c, o) for c, options in REFUSED.items() for o in options]
)
def test_help_leaves_out_what_is_refused_and_nothing_else(
    cli, shelf, tmp_path, command, option
):
    assert option not in set(re.findall(r"--[\w-]+", cli(command, "--help").out))
    given = [option] if (value := REFUSED[command][option]) is None else [option, value]
    place = ("-o", tmp_path / "out")
    done = cli(command, shelf / "model", *place, "--data", shelf / "text.txt", *given)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "No such option" not in done.err


def test_every_recipe_option_is_in_the_help_of_compress(cli):
    page = cli("compress", "--help").out
    for options in REFUSED.values():
        assert set(options) <= set(re.findall(r"--[\w-]+", page))


def test_arguments_are_named_alike_everywhere(cli):
    usage = cli("compress", "--help").out
    assert usage.startswith("Usage: spectrim compress [OPTIONS] MODEL\n")
    assert "\n  MODEL  Directory" in usage
    assert cli("evaluate", "-h").out.startswith(
        "Usage: spectrim evaluate [OPTIONS] MODELS...\n"
    )
    assert cli("bench-speed", "-h").out.startswith(
        "Usage: spectrim bench-speed [OPTIONS] [MODEL]"
    )


@pytest.mark.parametrize(
    ("cell", "right"),
    [(c, True) for c in ("8.80", "+0.05", "x1.040", "3.94 MB", "1/28", "192x192", "88.2%", "-")]
    + [(c, True) for c in ("20,000", "1e-05", "2:10", "nan", "")]
    + [(c, False) for c in ("0.self_attn.q_proj", "4 bits and more", "obd", "2M")],
)
def test_numbers_stand_to_the_right(capfd, cell, right):
    console.table("", ("what", "a heading that is wide"), [("x", cell)])
    row = capfd.readouterr().out.splitlines()[-2]
    assert row.rstrip("│").endswith(f"{cell} ") == right
