"""What is told before a run, `--dry-run`, and progress where output is no terminal."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from spectrim.cli import ahead, progress
from spectrim.cli.progress import StageProgress, minutes
from spectrim.pipeline import inputs
from tests.cli.conftest import SMALL


@pytest.mark.parametrize("command", ["compress", "plan"])
def test_a_dry_run_tells_the_stages_and_writes_nothing(cli, shelf, command, tmp_path):
    place = tmp_path / "made"
    before = sorted(tmp_path.rglob("*"))
    result = cli(
        *(command, shelf / "model", "--data", shelf / "text.txt", *SMALL, "-o", place),
        *("--budget", "0.5", "--refine", "distillation", "--dry-run", "--no-cache"),
    )
    assert result.code == 0
    stages = ("calibrating", "averaging the Hessian", "decomposing", "measuring curves")
    times = ", ".join(rf"{name} \d+:\d\d" for name in (*stages, "distillation"))
    assert re.search(f"ahead: {times}; in all about", result.err)
    assert "memory: at most" in result.err
    assert result.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_short_run_is_not_announced_and_a_long_one_is_numbered(
    compress, tmp_path, monkeypatch
):
    quick = compress("-o", tmp_path / "quick", "--no-report", "--recipe", "fast")
    assert "ahead:" not in quick.err
    monkeypatch.setattr(ahead, "SHORT", 0.0)
    monkeypatch.setattr(progress, "QUIET", 0.0)
    monkeypatch.setattr(progress, "BETWEEN", 0.0)
    told = compress("-o", tmp_path / "told", "--no-report", "--recipe", "fast", "--no-cache")
    assert "ahead: calibrating 0:0" in told.err
    assert "step 1/2 calibrating: 1 of" in told.err
    assert "step 2/2 decomposing: 1 of" in told.err


def test_an_announced_run_reads_text_and_model_once(compress, tmp_path, monkeypatch):
    calls: Counter[str] = Counter()

    def counted(name):
        original = getattr(inputs, name)

        def run(*arguments):
            calls[name] += 1
            return original(*arguments)

        return run

    for name in ("token_blocks", "observe_usage"):
        monkeypatch.setattr(inputs, name, counted(name))
    assert compress("-o", tmp_path / "out", "--no-report", "--no-cache").code == 0
    assert calls == {"token_blocks": 1, "observe_usage": 1}


def test_lines_come_at_intervals_with_the_time_left(capsys, monkeypatch):
    clock = itertools.count(0, 10)  # each item takes ten seconds
    show = StageProgress(["loading", "measuring"], lambda: next(clock))
    monkeypatch.setattr(progress.NOTES, "quiet", False)
    assert list(show(range(4), "measuring", 4)) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 2/2 measuring: 1 of 4 in 0:10, about 0:30 left",
        "step 2/2 measuring: 3 of 4 in 0:30, about 0:10 left",
        "step 2/2 measuring: 4 in 0:50",
    ]


def test_a_quiet_run_and_a_quick_stage_say_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress.NOTES, "quiet", False)
    assert list(StageProgress()(range(3), "loading", 3)) == [0, 1, 2]
    monkeypatch.setattr(progress.NOTES, "quiet", True)
    clock = itertools.count(0, 100)
    assert list(StageProgress((), lambda: next(clock))(range(3), "loading", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3600, "1:00:00"), (7384.6, "2:03:05")]
)
def test_times_read_as_on_a_clock(seconds, text):
    assert minutes(seconds) == text
