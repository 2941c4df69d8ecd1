"""The server over HTTP: plans, files, the compression, and who is turned away."""

from __future__ import annotations

import dataclasses
import html
import re
import socket
import struct
import threading
import time

import pytest

from spectrim import checkpoint
from spectrim.errors import InputError
from spectrim.pipeline.recipe import QuantizationRecipe
from spectrim.planning import load_plan, make_plan
from spectrim.report.facts import FACTS_FILE, cell_of, load_facts
from spectrim.report.live import Job, Places, Session, server
from tests.report.live.conftest import TOKEN


def test_the_page_is_the_report_and_knows_its_server(served):
    status, text = served.ask("GET", f"/?token={TOKEN}", X_Spectrim_Token="")
    assert status == 200
    assert text.startswith("<!doctype html>")
    assert 'id="save"' in text
    assert "connect-src 'self'" in html.unescape(text)
    assert TOKEN in text


@pytest.mark.parametrize("budget", [0.3, 0.6, 0.95])
def test_a_plan_is_the_planners(served, budget):
    found = served.values("GET", f"/plan?budget={budget}")
    session = served.session
    plan = make_plan(session.decomposition, session.recipe.with_changes(budget=budget).planning)
    assert found["kept"] == plan.kept
    assert found["loss"] == plan.predicted_loss
    assert found["ranks"] == {name: layer.rank for name, layer in plan.layers.items()}
    assert found["dense"] == len(plan.layers) - len(plan.ranks)
    labels = sorted(label for label, *_ in found["cells"].values())
    assert labels == sorted(str(layer.rank or "dense") for layer in plan.layers.values())
    assert found["bytes"] == sum(found["parts"].values())
    weights = sum(out * into for out, into in session.decomposition.shapes.values())
    dense = sum(part.dense for part in session.facts.parts)
    assert found["bytes"] == pytest.approx(dense - 4 * weights * (1 - plan.kept), abs=1)


def test_a_saved_plan_can_be_followed(served):
    path = served.values("POST", "/save", {"budget": 0.5})["path"]
    assert path == str(served.session.places.plan)
    plan = load_plan(served.session.places.plan)
    assert plan.budget == 0.5
    assert plan == served.session.plan(0.5)


@pytest.mark.slow
def test_the_compression_is_saved_with_its_page(served):
    assert served.values("GET", "/progress")["status"] == "idle"
    assert served.ask("GET", "/report")[0] == 400
    assert served.values("POST", "/start", {"budget": 0.5})["status"] in ("running", "done")
    served.session.job.wait(120)
    state = served.values("GET", "/progress")
    assert state["status"] == "done", state
    assert re.search(r"saved to .*: [\d.]+ .B -> [\d.]+ .B .*measured", state["message"])
    assert str(served.output) in state["message"]
    model, _ = checkpoint.load(served.output)
    plan = served.session.plan(0.5)
    layers = model.config.quantization_config.layers
    assert {name: entry["rank"] for name, entry in layers.items()} == plan.ranks
    facts = load_facts(served.output / FACTS_FILE)
    assert facts.kept == plan.kept
    found = served.values("GET", "/plan?budget=0.5")["parts"]
    for part in facts.parts:
        if part.name in {cell_of(layer.name).projection for layer in facts.layers}:
            assert 0 <= part.stored - found[part.name] < 100  # the masks of pivots
    assert served.ask("GET", f"/report?token={TOKEN}")[1].startswith("<!doctype html>")
    status, text = served.ask("POST", "/start", {"budget": 0.5})
    assert status == 400
    assert "already holds a result" in text


def test_work_shows_its_steps_and_stops():
    job, seen, go = Job(), [], threading.Event()

    def work(track):
        for step in track(range(5), "counting", 5):
            seen.append((step, job.state.what, job.state.done, job.state.total))
            go.wait(10)
        return "counted"

    job.start(work)
    with pytest.raises(InputError, match="running"):
        job.start(work)
    job.stop()
    go.set()
    job.wait(10)
    assert seen == [(0, "counting", 0, 5)]
    assert job.state.status == "stopped"
    job.start(work)
    job.wait(10)
    assert job.state.status == "done"
    assert job.state.message == "counted"
    assert [step for step, *_ in seen[1:]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", [InputError("no room"), KeyError("x")])
def test_work_that_fails_says_why(error, capsys):
    def work(track):
        raise error

    job = Job()
    job.start(work)
    job.wait(10)
    assert job.state.status == "failed"
    assert str(error) in job.state.message
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, KeyError)


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Spectrim_Token": "wrong"},
        {"X_Spectrim_Token": ""},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/plan?budget=0.5"), ("POST", "/save"), ("POST", "/start")],
)
def test_strangers_are_turned_away(served, method, path, headers):
    body = {"budget": 0.5} if method == "POST" else None
    status, text = served.ask(method, path, body, **headers)
    assert status == 403
    assert TOKEN not in text
    assert not served.session.places.plan.exists()
    assert not served.output.exists()


def test_its_own_names_are_let_in(served):
    for name in ("localhost", "127.0.0.1"):
        host = f"{name}:{served.port}"
        assert served.ask("GET", "/", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nowhere", None, 404),
        ("GET", "/save", None, 404),
        ("GET", "/../plan.yaml", None, 404),
        ("GET", "/plan", None, 400),
        ("GET", "/plan?budget=much", None, 400),
        ("GET", "/plan?budget=0", None, 400),
        ("GET", "/plan?budget=nan", None, 400),
        ("GET", "/plan?budget=0.0001", None, 400),
        ("POST", "/save", "{", 400),
        ("POST", "/save", [1], 400),
        ("POST", "/save", {"budget": [1]}, 400),
        ("POST", "/save", "9" * 10_001, 413),
    ],
)
def test_what_cannot_be_answered(served, method, path, body, status):
    found, text = served.ask(method, path, body)
    assert found == status, text
    assert '"error"' in text


def test_without_a_place_nothing_starts(source, tmp_path):
    session = Session(*source, Places(tmp_path / "plan.yaml", None))
    with pytest.raises(InputError, match="-o OUT"):
        session.start(0.5)


def test_curves_that_are_no_losses_are_not_explored(source, tmp_path):
    original, decomposition, recipe = source
    own = dataclasses.replace(decomposition, units="own")
    with pytest.raises(InputError, match="predicts no loss"):
        Session(original, own, recipe, Places(tmp_path / "plan.yaml", None))


def test_a_quantized_recipe_is_planned_in_its_bytes(source, tmp_path):
    original, decomposition, recipe = source
    changes = {"layer": "lowrank", "quantization": QuantizationRecipe(8, "rtn", 8)}
    recipe = original.with_save_dtype(recipe.with_changes(**changes))
    session = Session(original, decomposition, recipe, Places(tmp_path / "plan.yaml", None))
    answer = session.answer(0.25)
    layers = sum(part.stored for part in session.facts.parts) - session.facts.other_bytes
    assert layers == pytest.approx(session.facts.kept * session.facts.dense_weights * 4)
    dense = sum(shape[0] * shape[1] for shape in decomposition.shapes.values())
    planned = session.plan(0.25)
    others = sum(part.dense for part in session.facts.parts) - 4 * dense
    assert answer["bytes"] == pytest.approx(others + planned.kept * 4 * dense, rel=1e-6)
    assert answer["kept"] <= 0.25


def raw(served, *parts: bytes, seconds: float = 5.0) -> bytes:
    """Send bytes as they are; return what comes back before the server closes."""
    head = f" HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nX-Spectrim-Token: {TOKEN}\r\n"
    with socket.create_connection(("127.0.0.1", served.port), seconds) as client:
        client.sendall(parts[0] + head.encode() + b"".join(parts[1:]))
        return client.recv(200)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ((b"GET http://[/", b"\r\n"), b"400"),
        ((b"POST /save", b"Content-Length: 9999\r\n\r\n", b"[" * 9999), b"400"),
        ((b"POST /save", b"Content-Length: \xb2\r\n\r\n", b"{}"), b"413"),
        ((b"GET /plan?budget=nan", b"\r\n"), b"400"),
    ],
)
def test_malformed_requests_get_an_answer(served, capfd, parts, status):
    assert raw(served, *parts).split()[1] == status
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_of_ours_is_answered_too(served, monkeypatch, capfd):
    monkeypatch.setattr(type(served.session), "answer", lambda self, budget: 1 / 0)
    status, text = served.ask("GET", "/plan?budget=0.5")
    assert status == 500
    assert "ZeroDivisionError" in text
    assert "Traceback" in capfd.readouterr().err


def test_silent_clients_are_left_and_leaving_ones_are_no_error(served, monkeypatch, capfd):
    monkeypatch.setattr(server._Handler, "timeout", 0.2)
    before = threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
    for client in idle[:10]:  # half of them leave in the middle of a request
        client.sendall(b"POST /save HTTP/1.1\r\nContent-Le")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before
    assert served.values("GET", "/progress")["status"] == "idle"
    assert "Traceback" not in capfd.readouterr().err
    for client in idle[10:]:
        client.close()


def test_text_is_for_elastic_checkpoints(served):
    for method, body in (("GET", None), ("POST", {"budget": 0.5, "prompt": "a"})):
        status, text = served.ask(method, "/text", body)
        assert status == 400
        assert "only an elastic checkpoint" in text
    assert 'id="prompt"' not in served.ask("GET", "/")[1]
