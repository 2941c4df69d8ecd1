"""`compress` leaves a page beside the weights, and `report` makes it again, or another."""

from __future__ import annotations

import json

import pytest

from spectrim.checkpoint import load
from spectrim.evaluation import size
from spectrim.report.facts import FACTS_FILE, PAGE_FILE, load_facts


def test_compress_writes_a_page(compress, tmp_path):
    outcome = compress("-o", "out", "--budget", "0.6")
    assert outcome.code == 0, outcome.err
    assert f"report in out/{PAGE_FILE}" in outcome.err
    page = (tmp_path / "out" / PAGE_FILE).read_text()
    facts = load_facts(tmp_path / "out" / FACTS_FILE)
    assert page.startswith("<!doctype html>")
    assert len(facts.texts) == 3
    assert facts.result > 0
    assert facts.curve
    assert load(tmp_path / "out")[0] is not None


@pytest.mark.slow
def test_without_a_page_it_can_be_made_later(compress, cli, shelf, tmp_path):
    outcome = compress("-o", "out", "--budget", "0.6", "--no-report")
    assert outcome.code == 0
    assert "report" not in outcome.err
    page = tmp_path / "out" / PAGE_FILE
    assert not page.exists()
    assert cli("report", "out").code == 0
    assert 'id="curve"' in page.read_text()
    assert "The same prompt" not in page.read_text()
    before = load_facts(tmp_path / "out" / FACTS_FILE)
    data = ("--data", shelf / "text.txt", "--prompt", "abc")
    assert cli("report", "out", "--original", shelf / "model", *data).code == 0
    after = load_facts(tmp_path / "out" / FACTS_FILE)
    assert [text.prompt for text in after.texts] == ["abc"]
    assert before.result is None
    assert after.result > 0
    assert 0.5 < after.score < 2
    assert 0 < len(after.ratios) <= 8
    assert after.curve == before.curve
    for words in ("The same prompt", "Compression error by layer", after.ratios[0].name):
        assert words in page.read_text()


def test_a_page_elsewhere_leaves_the_output_alone(compress, cli, tmp_path):
    compress("-o", "out", "--budget", "0.6", "--no-report")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert cli("report", "out", "-o", "pages/one.html").code == 0
    assert (tmp_path / "pages" / "one.html").read_text().startswith("<!doctype html>")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_an_output_without_facts_tells_what_it_can(compress, cli, tmp_path):
    compress("-o", "out", "--budget", "0.6")
    known = load_facts(tmp_path / "out" / FACTS_FILE)
    (tmp_path / "out" / FACTS_FILE).unlink()
    assert cli("report", "out").code == 0
    facts = load_facts(tmp_path / "out" / FACTS_FILE)
    assert {x.name: (x.rank, x.weights, x.shape) for x in facts.layers} == {
        x.name: (x.rank, x.weights, x.shape) for x in known.layers
    }
    assert facts.parts == known.parts
    assert facts.kept == known.kept
    assert facts.recipe == known.recipe
    assert facts.curve == []


def test_a_compensated_output_has_a_page(cli, shelf, tmp_path):
    data = ("--data", shelf / "text.txt", "--sequences", "8", "--length", "24")
    outcome = cli("quantize", shelf / "model", "-o", "out", "--rank", "4", *data)
    assert outcome.code == 0, outcome.err
    assert cli("report", "out").code == 0
    facts = load_facts(tmp_path / "out" / FACTS_FILE)
    entries = load(tmp_path / "out")[0].config.quantization_config.layers
    assert {layer.name: layer.rank or 0 for layer in facts.layers} == {
        name: entry["rank"] for name, entry in entries.items()
    }
    stored = sum(part.stored for part in facts.parts)
    assert stored < sum(part.dense for part in facts.parts)


@pytest.mark.slow
def test_refined_models_say_that_predictions_are_older(compress, tmp_path):
    few = "refinement=[{name: distillation, options: {tokens: 500}}]"
    outcome = compress("-o", "out", "--budget", "0.6", "--set", few)
    assert outcome.code == 0, outcome.err
    assert load_facts(tmp_path / "out" / FACTS_FILE).refined == ["distillation"]
    assert "before refinement" in (tmp_path / "out" / PAGE_FILE).read_text()


@pytest.mark.slow
def test_quantized_factors_are_counted_in_bytes(compress, tmp_path):
    pytest.importorskip("torchao", reason="needs torchao")
    options = ("--budget", "0.2", "--quantize", "int8", "--rank-multiple", "4")
    outcome = compress("-o", "out", *options)
    assert outcome.code == 0, outcome.err
    facts = load_facts(tmp_path / "out" / FACTS_FILE)
    stored = sum(part.stored for part in facts.parts)
    header = size.disk_bytes(tmp_path / "out") - stored
    assert 0 < header < 12_000
    outside = sum(part.stored for part in facts.parts[-2:])
    assert facts.other_bytes == pytest.approx(outside, rel=0.05)


@pytest.mark.slow
def test_what_cannot_be_reported(compress, cli, shelf, tmp_path):
    assert "not a model that spectrim" in cli("report", shelf / "model").failed_with_one_line()
    assert "not a model that spectrim" in cli("report", "nowhere").failed_with_one_line()
    compress("-o", "out", "--budget", "0.6")
    assert "--original" in cli("report", "out", "--prompt", "a").failed_with_one_line()
    values = json.loads((tmp_path / "out" / FACTS_FILE).read_text())
    (tmp_path / "out" / FACTS_FILE).write_text(json.dumps(values | {"layers": 3}))
    assert "layers" in cli("report", "out").failed_with_one_line()
