"""The page in a real browser: no complaints, no requests, and controls that tell the truth."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from spectrim.report import formatting
from spectrim.report.curve_figure import WIDTH, axes_of, bytes_at
from spectrim.report.page import report_page
from tests.browser import PHONE, WIDE, browser, console, requests, resize, set_slider
from tests.browser import without_script as scriptless

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def address(facts, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(report_page(facts))
    return path.as_uri()


@pytest.fixture
def page(driver, address):
    """The page, freshly opened; nothing may have been logged when the test ends."""
    resize(driver, WIDE)
    driver.get("about:blank")
    console(driver), requests(driver)
    driver.get(address)
    yield driver
    assert console(driver) == []
    asked = [url for url in requests(driver) if not url.startswith("data:")]
    assert asked in ([address], [])


def one(driver, selector):
    return driver.find_element("css selector", selector)


def text(driver, selector):
    return one(driver, selector).text


def test_it_opens_without_a_complaint_and_asks_for_nothing(page, address, facts):
    assert facts.model in page.title
    assert text(page, "h1") == facts.model
    asked = [url for url in requests(page) if not url.startswith("data:")]
    assert asked == [address]


@pytest.mark.parametrize("kept", [25, 47, 83])
def test_the_size_slider_reads_the_curve(page, facts, kept):
    set_slider(page, one(page, "#budget"), kept)
    points = [point for point in facts.curve if point.loss > 0]
    sizes, losses = [p.kept for p in points], [p.loss for p in points]
    loss = math.exp(np.interp(kept / 100, sizes, np.log(losses)))
    assert text(page, "#budget-kept") == f"{kept}%"
    shown = text(page, "#budget-loss")
    assert shown.startswith("+")
    assert float(shown) == pytest.approx(loss, rel=0.06)
    assert text(page, "#budget-bytes") == formatting.size(bytes_at(facts, kept / 100))
    ratio = float(text(page, "#budget-ratio").split()[1])
    assert ratio == pytest.approx(math.exp(loss), rel=0.01)
    assert one(page, "#cursor").value_of_css_property("display") != "none"
    across = one(page, "#cursor line").rect["x"] - one(page, "#curve").rect["x"]
    share = across / one(page, "#curve").rect["width"] * WIDTH
    assert share == pytest.approx(axes_of(facts).x(kept / 100), abs=2)


def test_a_cell_opens_its_layer(page, facts):
    shown = [a for a in page.find_elements("css selector", ".layer") if a.is_displayed()]
    assert len(shown) == 1
    other = next(x.name for x in facts.layers if x.name != shown[0].get_attribute("id"))
    link = one(page, f'.map a[href="#{other}"]')
    link.click()
    shown = [a for a in page.find_elements("css selector", ".layer") if a.is_displayed()]
    assert [a.get_attribute("id") for a in shown] == [other]
    assert "open" in link.find_element("xpath", "..").get_attribute("class").split()
    assert len(page.find_elements("css selector", ".cell.open")) == 1


def test_the_rank_slider_reads_the_layer(page, facts):
    panel = one(page, ".layer.shown")
    layer = next(x for x in facts.layers if x.name == panel.get_attribute("id"))
    for index in (2, len(layer.ranks) // 2):
        rank = layer.ranks[index]
        set_slider(page, panel.find_element("css selector", ".rank"), rank)
        found = panel.find_element("css selector", ".rank-loss").text
        assert float(found) == pytest.approx(layer.losses[index], rel=0.06)
        assert panel.find_element("css selector", ".rank-value").text == str(rank)
        out, into = layer.shape
        share = rank * (out + into - rank) / (out * into)
        cost = panel.find_element("css selector", ".rank-cost").text
        assert float(cost.rstrip("%")) == pytest.approx(100 * share, abs=0.06)


def test_a_layer_can_be_linked_to(driver, address, facts):
    name = facts.layers[3].name
    driver.get("about:blank")
    driver.get(f"{address}#{name}")
    assert text(driver, ".layer.shown h3") == name


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_it_fits_its_window_and_follows_the_scheme(page, size, dark):
    resize(page, size, dark)
    assert page.execute_script("return document.documentElement.scrollWidth") <= size[0]
    color = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (brightness < 150) == dark
    for figure in page.find_elements("css selector", "#curve, .layer.shown svg, .map"):
        assert figure.is_displayed()
        assert figure.size["width"] <= size[0]


def test_figures_show_without_the_script(driver, address, facts):
    scriptless(driver, True)
    try:
        driver.get("about:blank")
        driver.get(address)
        assert one(driver, "#curve .curve").is_displayed()
        assert len(driver.find_elements("css selector", ".map .cell")) == len(facts.layers)
        shown = [a for a in driver.find_elements("css selector", ".layer") if a.is_displayed()]
        assert len(shown) == 1
        assert not one(driver, "#budget").is_displayed()
        other = next(x.name for x in facts.layers if x.name != shown[0].get_attribute("id"))
        driver.get(f"{address}#{other}")
        shown = [a for a in driver.find_elements("css selector", ".layer") if a.is_displayed()]
        assert [a.get_attribute("id") for a in shown] == [other]
    finally:
        scriptless(driver, False)
    assert console(driver) == []


def test_words_of_others_do_not_run(driver, facts, tmp_path):
    evil = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    layers = [dataclasses.replace(facts.layers[0], name=f"h.0.{evil}"), *facts.layers[1:]]
    changed = dataclasses.replace(facts, model=evil, recipe=evil, layers=layers)
    path = tmp_path / "evil.html"
    path.write_text(report_page(changed))
    driver.get(path.as_uri())
    assert text(driver, "h1") == evil
    assert console(driver) == []
