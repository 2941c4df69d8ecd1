"""The page as text: self-contained, complete without its script, and safe to open."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from spectrim.checkpoint.card import without_directories
from spectrim.errors import CheckpointError
from spectrim.report import formatting
from spectrim.report.curve_figure import BOX
from spectrim.report.facts import Continuation, LayerFacts, ReportData
from spectrim.report.page import report_page
from spectrim.report.pruning_figure import with_prunings
from spectrim.report.rank_map import STRENGTHS, rank_map, short_names
from spectrim.report.spectrum_figure import LOWER

VOID = {"meta", "link", "input", "col", "br"}


class Page(HTMLParser):
    """Elements in order, text by element id, and whether all of them are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data

    def having(self, tag: str, class_: str) -> list[dict[str, str]]:
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and class_ in attrs.get("class", "").split()
        ]


@pytest.fixture(scope="module")
def page(facts: ReportData) -> Page:
    return Page(report_page(facts))


def test_every_element_is_closed(page):
    assert page.open == []


def test_nothing_is_fetched(page):
    for tag, attrs in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert attrs.get(name, "#")[:1] == "#" or attrs[name] == "data:,", (tag, attrs)
    [policy] = [a["content"] for _, a in page.elements if "http-equiv" in a]
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    digest = hashlib.sha256(page.scripts[-1].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_style_and_script_fetch_nothing(facts):
    text = report_page(facts)
    assert not re.search(r"@import|url\(|fetch\([\"']http|https?://", text)


def test_figures_are_there_without_the_script(page, facts):
    assert len(page.having("polyline", "curve")) == 1 + len(facts.layers)
    assert len(page.having("polyline", "spectrum")) == len(facts.layers)
    assert len(page.having("circle", "chosen")) == 1
    assert len(page.having("polygon", "result")) == 1
    assert len(page.having("circle", "probe")) == len(facts.probes) > 0
    assert len(page.having("td", "cell")) == len(facts.layers)
    assert len(page.having("article", "first")) == 1
    for layer in facts.layers:
        assert {"id": layer.name}.items() <= next(
            a for t, a in page.elements if t == "article" and a["id"] == layer.name
        ).items()
        assert str(layer.rank or "dense") in page.text
    for part in facts.parts:
        assert part.name in page.text
        assert formatting.size(part.stored) in page.text
    assert facts.data["fingerprint"] in page.text
    assert facts.versions["torch"] in page.text
    assert "method: obd" in page.text


def test_the_script_has_the_numbers_of_the_facts(page, facts):
    values = json.loads(page.scripts[0])
    assert values["curve"] == [[p.kept, p.loss] for p in facts.curve]
    low, high = values["bytes"]
    assert low + facts.kept * (high - low) == pytest.approx(
        sum(part.stored for part in facts.parts)
    )
    for layer in facts.layers:
        given = values["layers"][layer.name]
        assert given["losses"] == layer.losses
        kept = given["costs"][given["ranks"].index(layer.rank)] if layer.rank else 1.0
        assert kept * layer.shape[0] * layer.shape[1] == pytest.approx(layer.weights)


def test_words_of_others_stay_words(facts):
    evil = "</script><script>alert(1)</script>"
    layer = dataclasses.replace(facts.layers[0], name=f"a.0.{evil}")
    changed = dataclasses.replace(
        facts,
        model=evil,
        texts=[Continuation(evil, f"{evil} x", evil)],
        data={"source": evil},
        layers=[layer, *facts.layers[1:]],
        recipe=evil,
    )
    page = Page(report_page(changed))
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 2
    assert page.text.count(evil) >= 5
    assert f"a.0.{evil}" in json.loads(page.scripts[0])["layers"]


def test_continuations_part_at_a_word(facts):
    texts = [Continuation("p", "one two three", "one twist"), Continuation("p", "same", "same")]
    page = Page(report_page(dataclasses.replace(facts, texts=texts)))
    assert "one two three" in page.text
    assert "compressed: the same" in page.text
    text = report_page(dataclasses.replace(facts, texts=texts))
    assert 'class="text">one <em>two three</em>' in text
    assert 'class="text">one <em>twist</em>' in text


@pytest.mark.parametrize(
    "missing",
    [
        {"curve": [], "probes": []},
        {"curve": [], "probes": [], "predicted_loss": None, "result": None, "parts": []},
        {"texts": []},
        {"result": None, "agreement": None},
        {"predicted_loss": None},
        {"data": {}, "versions": {}, "recipe": ""},
        {"units": "own", "curve": [], "predicted_loss": None},
        {"refined": ["block_distillation", "distillation"]},
    ],
)
def test_pages_without_some_facts(facts, missing):
    page = Page(report_page(dataclasses.replace(facts, **missing)))
    assert page.open == []
    assert len(page.having("td", "cell")) == len(facts.layers)
    if "refined" in missing:
        assert "refined by block_distillation and distillation" in page.text
        assert "before refinement" in page.text


def test_the_map_groups_projections_and_leaves_gaps():
    names = ["h.0.a.q_proj", "h.0.m.up_proj", "h.0.a.k_proj", "h.1.a.q_proj", "lm_head"]
    table = rank_map([LayerFacts(name, (4, 4), 2, "lowrank", 16) for name in names])
    assert table.groups == [("a", 2), ("m", 1), ("", 1)]
    assert table.columns == ["q_proj", "k_proj", "up_proj", "lm_head"]
    assert [label for label, _ in table.rows] == ["0", "1", ""]
    filled = [[cell is not None for cell in cells] for _, cells in table.rows]
    assert filled == [
        [True, True, True, False],
        [True, False, False, False],
        [False] * 3 + [True],
    ]


def test_cells_of_several_modules_are_means():
    layers = [LayerFacts(f"h.0.up.{n}", (8, 4), n or None, "lowrank", 9) for n in range(3)]
    [(_, [cell])] = rank_map(layers).rows
    assert cell.label == str(round((4 + 1 + 2) / 3))
    assert cell.share == pytest.approx((1 + 0.25 + 0.5) / 3)
    assert not cell.dense
    assert "3 modules" in cell.title


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["q_proj", "up_proj"], ["q", "up"]),
        (["c_attn", "c_fc"], ["c_attn", "c_fc"]),
        (["q_proj"], ["q_proj"]),
        (["q_proj", "_proj"], ["q_proj", "_proj"]),
        (["query", "key"], ["query", "key"]),
    ],
)
def test_short_names(names, short):
    assert short_names(names) == short


def test_numbers_have_two_or_three_digits():
    assert [formatting.size(n) for n in (0, 999, 1000, 12_340, 999_600, 5.36e6, 7e9)] == [
        "0 B", "999 B", "1.00 kB", "12.3 kB", "1.00 MB", "5.36 MB", "7.00 GB",
    ]  # fmt: skip
    assert [formatting.loss(v) for v in (0, 0.001234, 0.0456, 0.222, 3.456, 12.34)] == [
        "0", "0.0012", "0.046", "0.22", "3.46", "12.3",
    ]  # fmt: skip
    assert [formatting.percent(v) for v in (0.6, 0.4567, 1)] == ["60%", "45.7%", "100%"]


def test_prunings_are_drawn():
    """Two points for each: the loss before, on the model as it was tuned, and after."""
    events = [
        {"kept_before": 1.0, "kept_after": 0.5, "loss": 0.4, "measured": 0.3},
        {"kept_before": 0.5, "kept_after": 0.2, "loss": 0.9, "measured": 0.6},
    ]
    layer = LayerFacts("model.layers.0.q", (4, 4), 1, "lowrank", 8)
    plain = ReportData("m", "obd", "selection", "lowrank", 0.2, 0.2, None, [layer])
    text = "".join(json.dumps(event) + "\n" for event in events)
    facts = with_prunings(plain, text)
    assert [(p.kept, round(p.loss, 9)) for p in facts.prunings] == [
        (1.0, 0.1),
        (0.5, 0.4),
        (0.5, 0.3),
        (0.2, 0.9),
    ]
    drawn = Page(report_page(facts))
    assert not drawn.open
    assert "there is no predicted curve" not in drawn.text.lower()
    [figure] = [a for tag, a in drawn.elements if tag == "svg" and a.get("id") == "prunings"]
    assert "the task's loss" in figure["aria-label"]
    assert len(drawn.having("circle", "probe")) == 2
    assert "50% kept: loss" in drawn.text
    [line] = drawn.having("polyline", "curve")
    across = [float(pair.split(",")[0]) for pair in line["points"].split()]
    assert across == sorted(across, reverse=True), "from the dense model to smaller ones"
    with pytest.raises(CheckpointError, match="line 1"):
        with_prunings(plain, '{"loss": 1}\n')


def blocks_of(facts, count: int):
    """The facts of a model with `count` blocks of seven layers."""
    names = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up")]
    layer = facts.layers[0]
    layers = [
        dataclasses.replace(layer, name=f"model.layers.{block}.{name}", rank=1 + block % 8)
        for block in range(count)
        for name in [*names, "mlp.down_proj"]
    ]
    return dataclasses.replace(facts, layers=layers)


@pytest.mark.parametrize(("count", "tables"), [(16, 1), (30, 1), (80, 3)])
def test_maps_of_many_blocks_run_across(facts, count, tables):
    page = Page(report_page(blocks_of(facts, count)))
    wide = page.having("table", "wide")
    assert len(wide) == (tables if count > 16 else 0)
    cells = [attrs["data-cell"] for attrs in page.having("td", "cell")]
    assert sorted(cells) == sorted(
        f"{row}-{column}" for row in range(count) for column in range(7)
    )
    for attrs in wide:
        assert int(re.search(r"min-width:(\d+)px", attrs["style"])[1]) <= 1000


def test_the_line_of_the_kept_rank_leaves_the_titles(page):
    ends = [
        (float(attrs["y1"]), float(attrs["y2"]))
        for tag, attrs in page.elements
        if tag == "line" and attrs.get("class") in ("kept", "cursor")
    ]
    ends.remove((BOX.top, BOX.bottom))  # the cursor of the size slider, in another figure
    title = LOWER.top - 14
    assert not any(low < title < high for low, high in ends)
    assert {low > title for low, _ in ends} == {True, False}, "both parts have the line"


def test_labels_are_readable_on_every_ground():
    """A contrast of 4.5 (WCAG AA) in both themes, at every share."""
    css = report_page_css()
    for theme, strength in ((css[0], "strong"), (css[1], "middle")):
        for step in range(101):
            ground = mixed(theme["high"], theme["low"], step / 100)
            ink = theme["on-high" if step / 100 > STRENGTHS[strength] else "on-low"]
            assert contrast(ground, luminance(ink)) >= 4.5, (strength, step)


def test_without_a_script_one_sentence_says_so(page):
    assert [tag for tag, _ in page.elements].count("noscript") == 1
    assert "need JavaScript" in page.text


def test_the_divergence_is_named(page, facts):
    told = without_directories(facts.result_from)
    assert f"KL divergence from the original on {told}" in page.text
    assert "perplexity, measured" in page.text


def report_page_css() -> list[dict[str, str]]:
    """The colors of the light and of the dark theme, by name."""
    text = files("spectrim.report").joinpath("template", "page.css").read_text()
    return [
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in text.split(":root")[1:3]
    ]


def _linear(color: str) -> list[float]:
    values = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


def luminance(color: str) -> float:
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), _linear(color), strict=True))


def mixed(high: str, low: str, share: float) -> float:
    """The luminance of `color-mix(in oklab, high share, low)`."""
    to_lms = ((0.4122214708, 0.5363325363, 0.0514459929),
              (0.2119034982, 0.6806995451, 0.1073969566),
              (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
    to_rgb = ((4.0767416621, -3.3077115913, 0.2309699292),
              (-1.2684380046, 2.6097574011, -0.3413193965),
              (-0.0041960863, -0.7034186147, 1.7076147010))  # fmt: skip
    roots = [
        [
            sum(w * v for w, v in zip(row, _linear(color), strict=True)) ** (1 / 3)
            for row in to_lms
        ]
        for color in (high, low)
    ]  # Oklab is linear in these roots, so they are mixed alike
    lms = [(share * a + (1 - share) * b) ** 3 for a, b in zip(*roots, strict=True)]
    rgb = [sum(w * v for w, v in zip(row, lms, strict=True)) for row in to_rgb]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))


def contrast(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return (high + 0.05) / (low + 0.05)
