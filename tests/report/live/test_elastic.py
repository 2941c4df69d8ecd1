"""The live page of an elastic checkpoint: figures, text and export of every size."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from spectrim import checkpoint
from spectrim.errors import InputError
from spectrim.evaluation.tasks.generation import continue_prompt
from spectrim.models.replace import factored_layers
from spectrim.pipeline.loaded_model import load_model
from spectrim.report.facts import FACTS_FILE
from spectrim.report.live import ElasticSession, Places, writer
from tests.report.live.conftest import Served

PROMPT = "abc de"


def finished(served: Served, seconds: float = 60) -> dict:
    end = time.monotonic() + seconds
    while (state := served.values("GET", "/text"))["status"] == "running":
        assert time.monotonic() < end, state
        time.sleep(0.02)
    return state


def wanted_text(elastic_directory: Path, budget: float) -> str:
    model, tokenizer = checkpoint.load(elastic_directory, budget=budget, dtype=torch.float32)
    return continue_prompt(model, tokenizer, PROMPT, writer.NEW_TOKENS, lambda text: True)


def test_the_text_is_that_of_the_model_at_the_size(served_elastic, elastic_directory):
    assert served_elastic.values("GET", "/text")["status"] == "idle"
    for number, budget in enumerate((0.9, 0.45, 0.7), 1):
        begun = served_elastic.values("POST", "/text", {"budget": budget, "prompt": PROMPT})
        assert begun["number"] == number
        state = finished(served_elastic)
        assert (state["status"], state["budget"], state["prompt"]) == ("done", budget, PROMPT)
        assert state["text"] == wanted_text(elastic_directory, budget)
        ranks = {
            name: layer.rank
            for name, layer in factored_layers(served_elastic.session.source.model)
        }
        found = served_elastic.session.sizes.ranks(budget)
        assert ranks == {name: rank for name, rank in found.items() if rank is not None}


def test_a_new_size_ends_the_text_before_it(served_elastic, elastic_directory, monkeypatch):
    """The first request is held at its second token until the next one has come."""
    reached, go, seen = threading.Event(), threading.Event(), []
    plain = writer.continue_prompt

    def slow(model, tokenizer, prompt, most, show):
        def shown(text):
            seen.append(text)
            if len(seen) == 2:
                reached.set()
                go.wait(30)
            return show(text)

        return plain(model, tokenizer, prompt, most, shown)

    monkeypatch.setattr(writer, "continue_prompt", slow)
    served_elastic.values("POST", "/text", {"budget": 0.9, "prompt": PROMPT})
    assert reached.wait(30)
    monkeypatch.setattr(writer, "continue_prompt", plain)
    for budget in (0.6, 0.5):
        served_elastic.values("POST", "/text", {"budget": budget, "prompt": PROMPT})
    go.set()
    state = finished(served_elastic)
    assert len(seen) == 2
    assert (state["number"], state["budget"], state["status"]) == (3, 0.5, "done")
    assert state["text"] == wanted_text(elastic_directory, 0.5)


def test_what_cannot_be_written_says_why(elastic_directory, tmp_path):
    copied = Path(shutil.copytree(elastic_directory, tmp_path / "copied"))
    session = ElasticSession(load_model(str(copied)), Places(None, None))
    try:
        with pytest.raises(InputError, match="enter a prompt"):
            session.writer.start(0.5, "")
        session.writer.start(0.2, PROMPT)
        assert "0.4 to 0.9" in outcome(session).message
        session.writer.start(0.5, "a " * 400)
        assert "shorten it" in outcome(session).message
        shutil.rmtree(copied)
        session.writer.start(0.9, PROMPT)
        state = outcome(session)
        assert state.status == "failed"
        assert "cannot be read" in state.message
        session.writer.start(0.45, PROMPT)
        assert outcome(session).status == "done"
    finally:
        session.close()


def outcome(session: ElasticSession, seconds: float = 60) -> writer.Writing:
    end = time.monotonic() + seconds
    while session.writer.state.status == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    return session.writer.state


@pytest.mark.parametrize("budget", [0.4, 0.63, 0.9])
def test_figures_are_those_of_the_loaded_size(served_elastic, elastic_directory, budget):
    found = served_elastic.values("GET", f"/plan?budget={budget}")
    model, _ = checkpoint.load(elastic_directory, budget=budget)
    plan = model.config.quantization_config.provenance["plan"]
    assert found["kept"] == pytest.approx(plan["kept"])
    assert found["loss"] == pytest.approx(plan["predicted_loss"])
    assert found["bytes"] == sum(p.nbytes for p in model.parameters())
    assert found["bytes"] == sum(found["parts"].values())
    ranks = {name: layer.rank for name, layer in factored_layers(model)}
    assert {name: rank for name, rank in found["ranks"].items() if rank} == ranks
    status, text = served_elastic.ask("GET", "/plan?budget=0.95")
    assert status == 400
    assert "0.4 to 0.9" in text


def test_the_page_has_a_slider_of_its_sizes_and_a_prompt(served_elastic):
    page = served_elastic.ask("GET", "/")[1]
    assert 'min="40" max="90"' in page
    assert 'id="prompt"' in page
    assert 'id="save"' not in page
    assert "Export this size" in page
    assert served_elastic.ask("POST", "/save", {"budget": 0.5})[0] == 400


def test_a_size_is_exported_with_its_report(served_elastic):
    assert served_elastic.ask("GET", "/report")[0] == 400
    served_elastic.values("POST", "/start", {"budget": 0.5})
    served_elastic.session.job.wait(60)
    state = served_elastic.values("GET", "/progress")
    assert state["status"] == "done", state
    model, _ = checkpoint.load(served_elastic.output)
    ranks = {name: layer.rank for name, layer in factored_layers(model)}
    found = served_elastic.session.sizes.ranks(0.5)
    assert ranks == {name: rank for name, rank in found.items() if rank is not None}
    assert served_elastic.ask("GET", "/report")[1].startswith("<!doctype html>")


def test_without_stored_facts_the_bytes_are_the_same(
    served_elastic, elastic_directory, tmp_path
):
    copied = Path(shutil.copytree(elastic_directory, tmp_path / "copied"))
    (copied / FACTS_FILE).unlink()
    session = ElasticSession(load_model(str(copied)), Places(None, None))
    expected = served_elastic.values("GET", "/plan?budget=0.55")
    found = session.answer(0.55)
    assert (found["bytes"], found["ranks"]) == (expected["bytes"], expected["ranks"])
    assert session.prompt
