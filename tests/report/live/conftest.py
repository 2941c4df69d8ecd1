"""A session over a tiny model, served on a free port of this machine."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.plan import factorize
from spectrim.report.live import Access, Places, Session, make_server
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

TOKEN = "secret-of-this-test"


@dataclass(frozen=True)
class Served:
    session: Session
    port: int
    output: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={TOKEN}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Status and text; with the token unless `headers` say otherwise."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {"X_Spectrim_Token": TOKEN} | headers
        sent = {name.replace("_", "-"): value for name, value in given.items()}
        text = body if body is None or isinstance(body, str) else json.dumps(body)
        connection.request(method, path, text, sent)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def values(self, method: str, path: str, body: Any = None) -> Any:
        status, text = self.ask(method, path, body)
        assert status == 200, text
        return json.loads(text)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """What sessions share: the model and its decomposition."""
    data = text_file(tmp_path_factory.mktemp("explore") / "text.txt")
    model, tokenizer, recipe = tiny_llama(), tiny_tokenizer(), small_recipe(data)
    decomposition = factorize(model, tokenizer, recipe)
    return LoadedModel(model, tokenizer, torch.float32, "tiny model"), decomposition, recipe


@pytest.fixture
def served(source, tmp_path) -> Iterator[Served]:
    places = Places(tmp_path / "plan.yaml", tmp_path / "out")
    session = Session(*source, places)
    server = make_server(session, Access(TOKEN))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Served(session, server.server_port, tmp_path / "out")
    session.job.stop()
    session.job.wait(60)
    server.shutdown()
    server.server_close()
