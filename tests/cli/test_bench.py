"""`spectrim bench` as it is called."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from spectrim.pipeline import benchmark
from tests.cli.conftest import SMALL

OPTIONS = (*SMALL, "--no-probe", "--tokens", "200")
TWO = "svd/uniform/lowrank,obd/uniform"


@pytest.fixture
def bench(cli, shelf):
    def call(*arguments: object):
        texts = ("--data", shelf / "text.txt", "--eval", shelf / "text.txt")
        return cli("bench", shelf / "model", *texts, *OPTIONS, *arguments)

    return call


def test_table_figures_and_plot(bench, tmp_path):
    done = bench("--methods", TWO, "--budgets", ".7,.5", "-o", "out", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(row["name"], row["budget"]) for row in found["rows"]] == [
        ("svd/uniform/lowrank", 0.7),
        ("svd/uniform/lowrank", 0.5),
        ("obd/uniform/pivoted", 0.7),
        ("obd/uniform/pivoted", 0.5),
    ]
    out = tmp_path / "out"
    assert json.loads((out / "bench.json").read_text()) == found
    text = (out / "bench.md").read_text()
    assert all(f"| {row['name']} | {row['budget']:g} |" in text for row in found["rows"])
    ElementTree.fromstring((out / "bench.svg").read_text())
    assert not any(row["exceeds_budget"] or row["error"] for row in found["rows"])


@pytest.mark.slow
def test_again_and_with_more(bench, monkeypatch):
    first = bench("--methods", TWO, "--budgets", ".7", "-o", "out", "--json")
    assert first.code == 0, first.err
    again = bench("--methods", TWO, "--budgets", ".7", "-o", "out")
    assert "2 of 2 rows: 0 made, 2 found finished" in again.err
    assert "svd/uniform" in again.out
    more = bench("--methods", f"{TWO},svd_llm", "--budgets", ".7", "-o", "out", "--json")
    rows = json.loads(more.out)["rows"]
    assert rows[:2] == json.loads(first.out)["rows"]
    assert json.loads(more.out)["rows_made"] == 1


@pytest.mark.slow
def test_an_interrupted_table_goes_on(bench, tmp_path, monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    arguments = ("--methods", TWO, "--budgets", ".7", "-o", "out")
    with monkeypatch.context() as patch:
        original = benchmark.rows_of

        def second_fails(subject, dense, name, recipes):
            yield from (original if "svd" in name else interrupted)(
                subject, dense, name, recipes
            )

        patch.setattr(benchmark, "rows_of", second_fails)
        stopped = bench(*arguments)
    assert stopped.code == 2
    assert stopped.err.splitlines()[-1].startswith("error: interrupted")
    assert "unfinished: 1 of 2 rows" in (tmp_path / "out" / "bench.md").read_text()
    assert "2 of 2 rows: 1 made, 1 found finished" in bench(*arguments).err
    assert "unfinished" not in (tmp_path / "out" / "bench.md").read_text()


@pytest.mark.slow
def test_a_row_that_cannot_be_made_is_a_warning(bench):
    done = bench("--methods", "svd/uniform", "--budgets", ".7,.001", "-o", "out")
    assert done.code == 0
    assert "warning: svd/uniform/pivoted at 0.001: budget 0.001 is below the sm" in done.err
    assert "error" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "nope"], "unknown method or preset 'nope'; available: "),
        (["--methods", "obd+nope"], "unknown refinement 'nope'"),
        (["--methods", "obd,obd"], "is named twice"),
        (["--methods", "none.yaml"], "none.yaml: no such file"),
        (["--methods", ","], "no method is named"),
        ([], "Missing option '--methods'"),
        (
            ["--methods", "obd", "--budgets", ".5,1.5"],
            "budget: Input should be less than or equal to 1, got 1.5",
        ),
        (["--methods", "obd", "--budgets", "half"], "--budgets half: expected fractions"),
        (["--methods", "obd", "--budgets", ".5,.5"], "a budget is named twice"),
        (["--methods", "obd", "--include", "no_such"], "matches no linear layer"),
        (["--methods", "obd", "--eval", "none.txt"], "no such file: 'none.txt'"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(bench, monkeypatch, arguments, message):
    monkeypatch.setattr(benchmark, "gather", lambda *a: pytest.fail("calibrated"))
    assert message in bench(*arguments, "-o", "out").failed_with_one_line()


def test_an_output_that_is_a_file(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "gather", lambda *a: pytest.fail("calibrated"))
    (tmp_path / "out").write_text("mine")
    assert "out" in bench("--methods", "obd", "-o", "out").failed_with_one_line()
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.slow
def test_budgets_of_time(bench, tmp_path):
    """What the tiny layers take is all calls, so any of their times is met by dense ones."""
    asked = ("--methods", "svd/uniform/lowrank,obd", "--latency-budgets", "1", "-o", "out")
    done = bench(*asked, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert [row["recipe"]["latency"]["budget"] for row in rows] == [1.0, 1.0]
    assert all(row["error"] is None and row["planned_time"] <= 1.0 for row in rows)
    assert "planned time" in (tmp_path / "out" / "bench.md").read_text()
    again = bench(*asked)
    assert "2 of 2 rows: 0 made, 2 found finished" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--latency-budgets", ".7", "--budgets", ".7"), "give budgets of one kind"),
        (("--latency-budget", ".7", "--budget", ".7"), "give budgets of one kind"),
        (("--latency-budgets", "fast"), "--latency-budgets fast: expected fractions"),
        (
            ("--latency-budgets", ".7,2"),
            "budget: Input should be less than or equal to 1, got 2.0",
        ),
        (
            ("--latency-budget", ".7", "--layer", "sparse_dictionary"),
            "only lowrank and pivoted layers are timed",
        ),
    ],
)
def test_budgets_of_time_that_cannot_be_met_fail_at_once(bench, arguments, message):
    done = bench("--methods", "svd", *arguments, "-o", "out")
    assert done.code == 2
    assert message in done.err
