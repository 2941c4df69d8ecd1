"""A saved tiny model, a text, and the command line called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from spectrim.cli import main
from tests.runs import text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

NEW_TOKENS = 4
"""Of the texts on a page, which are half of the time of a tiny run otherwise."""
SMALL = ("--sequences", "8", "--length", "24", "--set", "calibration.tokens_per_batch=96")
"""Options of a run that takes a fraction of a second."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def failed_with_one_line(self) -> str:
        """The text of the only error line; nothing but warnings may stand beside it."""
        assert self.code == 2, (self.code, self.out, self.err)
        kinds = [line.partition(":")[0] for line in self.err.splitlines()]
        assert kinds.count("error") == 1, self.err
        assert set(kinds) <= {"error", "warning"}, self.err
        [line] = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")


Cli = Callable[..., Outcome]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Path:
    """`model` (a tiny Llama with its tokenizer), `text.txt`, and the cache of all tests."""
    root = tmp_path_factory.mktemp("shelf")
    tiny_llama().save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    text_file(root / "text.txt")
    return root


@pytest.fixture
def cli(shelf, tmp_path, monkeypatch, capfd) -> Cli:
    """`cli("plan", directory, ...)` in an empty working directory."""
    monkeypatch.setenv("SPECTRIM_CACHE", str(shelf / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("spectrim.report.compare.NEW_TOKENS", NEW_TOKENS)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["spectrim", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        streams = capfd.readouterr()
        return Outcome(int(exit_.value.code or 0), streams.out, streams.err)

    return call


@pytest.fixture
def compress(cli, shelf) -> Cli:
    """`cli("compress", model, "--data", text, ...)` on small settings."""

    def call(*arguments: object) -> Outcome:
        data = ("--data", shelf / "text.txt")
        return cli("compress", shelf / "model", *data, *SMALL, *arguments)

    return call


@pytest.fixture
def plan(cli, shelf) -> Cli:
    def call(*arguments: object) -> Outcome:
        data = ("--data", shelf / "text.txt")
        return cli("plan", shelf / "model", *data, *SMALL, *arguments)

    return call
