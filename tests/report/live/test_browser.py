"""The live page in a real browser: the slider plans, the buttons do what they say."""

from __future__ import annotations

import re
import time

import pytest

from spectrim import checkpoint
from spectrim.planning import load_plan
from spectrim.report import formatting
from spectrim.report.curve_figure import WIDTH, axes_of
from tests.browser import PHONE, WIDE, browser, console, requests, resize, set_slider

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver():
    with browser() as started:
        yield started


@pytest.fixture
def page(driver, served):
    resize(driver, WIDE)
    driver.get("about:blank")
    console(driver), requests(driver)
    driver.get(served.address)
    yield driver
    assert console(driver) == []
    asked = [url for url in requests(driver) if not url.startswith("data:")]
    assert all(url.startswith(f"http://127.0.0.1:{served.port}/") for url in asked)


def one(driver, selector):
    return driver.find_element("css selector", selector)


def until(driver, selector, wanted, seconds=60):
    """Waits until the element's text satisfies `wanted`."""
    end = time.monotonic() + seconds
    while not wanted(text := one(driver, selector).text):
        assert time.monotonic() < end, text
        time.sleep(0.05)
    return text


@pytest.mark.parametrize("budget", [40, 85])
def test_the_slider_shows_the_plan_of_that_budget(page, served, budget):
    set_slider(page, one(page, "#budget"), budget)
    plan = served.session.plan(budget / 100)
    expected = served.session.answer(budget / 100)
    until(page, "#budget-kept", lambda text: text == formatting.percent(plan.kept))
    assert float(one(page, "#budget-loss").text) == pytest.approx(plan.predicted_loss, rel=0.06)
    assert one(page, "#budget-bytes").text == formatting.size(expected["bytes"])
    assert one(page, "#bytes-now").text == formatting.size(expected["bytes"])
    dense = len(plan.layers) - len(plan.ranks)
    assert one(page, "#budget-dense").text == f"{dense} of {len(plan.layers)}"
    for key, (label, share, _, _) in expected["cells"].items():
        cell = one(page, f'[data-cell="{key}"]')
        assert cell.text == label
        found = page.execute_script("return arguments[0].style.getPropertyValue('--k')", cell)
        assert float(found) == pytest.approx(share, abs=0.001)
    across = float(one(page, "#chosen").get_attribute("cx"))
    assert across == pytest.approx(axes_of(served.session.facts).x(plan.kept), abs=0.1)
    assert across < WIDTH
    for part, stored in expected["parts"].items():
        assert one(page, f'[data-part="{part}"] .stored').text == formatting.size(stored)
    panel = one(page, ".layer.shown")
    rank = plan.layers[panel.get_attribute("id")].rank
    state = panel.find_element("css selector", ".state").text
    assert state == "left dense" if rank is None else re.match(rf"rank {rank} of", state)


def test_the_plan_is_saved(page, served):
    set_slider(page, one(page, "#budget"), 45)
    one(page, "#save").click()
    until(page, "#status", lambda text: "plan saved to" in text)
    assert load_plan(served.session.places.plan).budget == 0.45


def test_the_compression_runs_and_links_its_report(page, served):
    set_slider(page, one(page, "#budget"), 50)
    one(page, "#start").click()
    text = until(page, "#status", lambda text: "saved to" in text, 120)
    assert str(served.output) in text
    ranks = served.session.plan(0.5).ranks
    layers = checkpoint.load(served.output)[0].config.quantization_config.layers
    assert {name: entry["rank"] for name, entry in layers.items()} == ranks
    assert not one(page, "#progress").is_displayed()
    one(page, "#status a").click()
    until(page, ".brand", lambda text: text == "spectrim report")


def test_it_fits_a_phone(page):
    resize(page, PHONE)
    assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    for name in ("#save", "#start"):
        assert one(page, name).is_displayed()
    assert not one(page, "#stop").is_displayed()


@pytest.fixture
def elastic_page(driver, served_elastic):
    resize(driver, WIDE)
    driver.get("about:blank")
    console(driver), requests(driver)
    driver.get(served_elastic.address)
    yield driver
    assert console(driver) == []


def test_the_slider_of_an_elastic_model_shows_its_text(elastic_page, served_elastic):
    page, session = elastic_page, served_elastic.session
    texts = {}
    for percent in (90, 55):
        set_slider(page, one(page, "#budget"), percent)
        until(page, "#written", lambda text, percent=percent: f"{percent}%" in text)
        state = session.writer.state
        assert state.budget == percent / 100
        texts[percent] = state.text
        assert one(page, "#text").get_attribute("textContent") == state.prompt + state.text
        kept = session.answer(percent / 100)["kept"]
        assert one(page, "#budget-kept").text == formatting.percent(kept)
    rows = [row.text for row in page.find_elements("css selector", "#written dt")]
    assert rows == ["90%", "55%"]
    shown = page.find_elements("css selector", "#written dd")
    assert [row.get_attribute("textContent") for row in shown] == [texts[90], texts[55]]


def test_another_prompt_begins_again_and_a_failure_is_told(elastic_page, served_elastic):
    page = elastic_page
    until(page, "#written", lambda text: "90%" in text)
    field = one(page, "#prompt")
    field.clear()
    field.send_keys("xyz")
    until(page, "#text", lambda text: text.startswith("xyz"))
    end = time.monotonic() + 60
    while served_elastic.session.writer.state.status == "running":
        assert time.monotonic() < end
    assert served_elastic.session.writer.state.prompt == "xyz"
    field.send_keys("a " * 400)
    assert "shorten it" in until(page, "#text-status", bool)


def test_the_elastic_page_fits_a_phone(elastic_page):
    resize(elastic_page, PHONE)
    assert elastic_page.execute_script("return document.documentElement.scrollWidth") <= 390
    for name in ("#prompt", "#text", "#start"):
        assert one(elastic_page, name).is_displayed()
