"""A table of rows as Markdown, as values and as a plot."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from spectrim.pipeline.benchmark import Bench, BenchRow, DenseResult
from spectrim.report.bench_plot import WIDTH, bench_svg, lines_of, round_ticks
from spectrim.report.bench_table import columns, markdown, short_names, summary, values

TEXTS = ("data/valid.txt", "other/wiki.raw")


def row(name: str, budget: float, loss: float, **changes: object) -> BenchRow:
    figures = {
        "kept": budget,
        "layer_bytes": int(1000 * budget),
        "allowed_bytes": int(1000 * budget),
        "file_bytes": 5000 + int(1000 * budget),
        "predicted_loss": loss / 2,
        "loss_increase": {TEXTS[0]: loss, TEXTS[1]: 2 * loss},
        "perplexity": {TEXTS[0]: 4.0 + loss, TEXTS[1]: 8.0 + loss},
        "kl_divergence": loss / 3,
        "seconds": {"calibrate": 1.5, "compress": 0.25},
        "peak_memory": 3 * 2**20,
    }
    return BenchRow(name, budget, {}, **(figures | changes))


def table(*rows: BenchRow, wanted: int | None = None) -> Bench:
    dense = DenseResult(6000, dict.fromkeys(TEXTS, 1.0), {TEXTS[0]: 4.0, TEXTS[1]: 8.0})
    return Bench(dense, rows, wanted or len(rows), len(rows))


def lines(bench: Bench) -> list[dict[str, str]]:
    """The Markdown table back as one mapping per line."""
    text = markdown(bench, "title").splitlines()
    found = [
        [cell.strip() for cell in line[1:-1].split(" | ")] for line in text if line[:1] == "|"
    ]
    assert len({len(cells) for cells in found}) == 1
    return [dict(zip(found[0], cells, strict=True)) for cells in found[2:]]


def test_markdown_holds_every_figure():
    original, first = lines(table(row("svd", 0.8, 0.5)))
    assert original["recipe"] == "original"
    assert original["file bytes"] == "6,000"
    assert original["perplexity valid.txt"] == "4.000"
    assert first == {
        "recipe": "svd",
        "budget": "0.8",
        "kept": "0.8000",
        "layer bytes": "800",
        "file bytes": "5,800",
        "perplexity valid.txt": "4.500",
        "perplexity wiki.raw": "8.500",
        "KL": "0.1667",
        "predicted": "0.2500",
        "measured": "0.5000",
        "calibrate s": "1.5",
        "decompose s": "-",
        "measure s": "-",
        "compress s": "0.2",
        "refine s": "-",
        "evaluate s": "-",
        "peak MiB": "3",
    }


def test_what_exceeds_its_bytes_is_marked():
    over = row("svd", 0.8, 0.5, layer_bytes=801)
    assert lines(table(over))[1]["layer bytes"] == "801!"
    assert values(table(over), "model")["rows"][0]["exceeds_budget"] is True


def test_errors_and_missing_rows_are_told():
    wrong = BenchRow("obd", 0.01, {}, error="budget 0.01 is too small")
    bench = table(row("svd", 0.8, 0.5), wrong, wanted=4)
    assert lines(bench)[2]["measured"] == "error"
    text = markdown(bench, "title")
    assert "- obd at 0.01: budget 0.01 is too small" in text
    assert "- unfinished: 2 of 4 rows" in text
    assert "unfinished" not in markdown(table(wrong), "title")


def test_values_are_json_with_all_digits():
    found = values(table(row("svd", 0.8, 1 / 3)), "model")
    again = json.loads(json.dumps(found))
    assert again["rows"][0]["loss_increase"] == {TEXTS[0]: 1 / 3, TEXTS[1]: 2 / 3}
    assert again["dense"]["file_bytes"] == 6000
    assert again["model"] == "model"


def test_the_summary_is_a_part_of_the_table():
    bench = table(row("svd", 0.8, 0.5))
    head, rows = summary(bench)
    assert head == (
        "recipe",
        "budget",
        "kept",
        "layer bytes",
        "valid.txt",
        "wiki.raw",
        "measured",
    )
    assert rows[1] == ("svd", "0.8", "0.8000", "800", "4.500", "8.500", "0.5000")
    assert len(head) < len(columns(bench))


def test_names_stay_distinct():
    assert short_names(["a/x.txt", "b/y.txt"]) == ["x.txt", "y.txt"]
    assert short_names(["a/x.txt", "b/x.txt"]) == ["a/x.txt", "b/x.txt"]


def test_the_plot_has_a_line_for_each_recipe_and_a_dot_for_each_row():
    rows = [row("svd", 0.8, 0.5), row("svd", 0.4, 2.0), row("a <b> & c", 0.8, 0.1)]
    rows.append(BenchRow("obd", 0.8, {}, error="no"))
    assert lines_of(rows) == {"svd": [(400, 2.0), (800, 0.5)], "a <b> & c": [(800, 0.1)]}
    tree = ElementTree.fromstring(bench_svg(rows, "t < u"))
    space = "{http://www.w3.org/2000/svg}"
    first, second = tree.findall(f"{space}polyline")
    assert len(first.get("points").split()) == 2
    assert len(second.get("points").split()) == 1
    assert len(tree.findall(f"{space}circle")) == 3
    texts = [element.text for element in tree.findall(f"{space}text")]
    assert {"t < u", "svd", "a <b> & c"} <= set(texts)
    x = [float(point.split(",")[0]) for point in first.get("points").split()]
    y = [float(point.split(",")[1]) for point in first.get("points").split()]
    assert x[0] < x[1]
    assert y[0] < y[1]  # downwards: the smaller loss is lower


def test_the_axis_is_round_and_where_the_points_are():
    """In a unit of few digits, with the original drawn and no label beyond the edge."""
    sizes = (3_100_000, 2_400_000)
    rows = [
        row("svd", size / 4e6, 0.5, layer_bytes=size, allowed_bytes=size, kept=size / 4e6)
        for size in sizes
    ]
    tree = ElementTree.fromstring(bench_svg(rows, "t"))
    space = "{http://www.w3.org/2000/svg}"
    labels = [e for e in tree.findall(f"{space}text") if e.get("text-anchor") == "middle"]
    ticks = {e.text: float(e.get("x")) for e in labels if re.fullmatch(r"[\d.]+", e.text or "")}
    assert list(ticks) == ["2", "2.5", "3", "3.5", "4"]
    assert max(ticks.values()) + 15 < WIDTH
    assert any("MB" in (e.text or "") for e in labels)
    [original] = [e for e in tree.findall(f"{space}text") if e.text == "original"]
    assert float(original.get("x")) == pytest.approx(ticks["4"], abs=10)


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [
        (0.13, 0.98, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (100, 100, [100, 100.02]),
        (23, 61, [20, 30, 40, 50, 60, 70]),
    ],
)
def test_round_ticks(least, most, expected):
    assert round_ticks(least, most)[: len(expected)] == pytest.approx(expected)
    assert len(round_ticks(least, most)) <= 9


def test_a_plot_without_rows_or_with_losses_below_zero():
    for rows in ([], [row("svd", 0.8, -0.1)], [row("svd", 0.8, 0.0), row("svd", 0.4, 1.0)]):
        text = bench_svg(rows, "empty")
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "nan" not in text
        assert "inf" not in text
