"""A session over a tiny model, served on a free port of this machine."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.pipeline.budgets import ElasticRecipe
from spectrim.pipeline.compress import compress
from spectrim.pipeline.loaded_model import LoadedModel, load_model
from spectrim.pipeline.plan import factorize
from spectrim.report.live import Access, ElasticSession, Places, Session, make_server
from spectrim.report.write import OutputSpec, write_result
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer

TOKEN = "secret-of-this-test"


@dataclass(frozen=True)
class Served:
    session: Any
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
    with _serving(Session(*source, places), tmp_path / "out") as served:
        yield served


@pytest.fixture(scope="session")
def elastic_directory(tmp_path_factory) -> Path:
    """A checkpoint of all sizes of a tiny model."""
    root = tmp_path_factory.mktemp("elastic")
    data = text_file(root / "text.txt")
    recipe = small_recipe(data, elastic=ElasticRecipe(0.4, 0.9), layer="lowrank")
    original = LoadedModel(tiny_llama(), tiny_tokenizer(), torch.float32, "tiny model")
    result = compress(original.model, original.tokenizer, recipe)
    write_result(original, result, OutputSpec(root / "out", page=False))
    return root / "out"


@pytest.fixture
def served_elastic(elastic_directory, tmp_path) -> Iterator[Served]:
    places = Places(None, tmp_path / "out")
    session = ElasticSession(load_model(str(elastic_directory)), places)
    with _serving(session, tmp_path / "out") as served:
        yield served


@contextmanager
def _serving(session: Session | ElasticSession, output: Path) -> Iterator[Served]:
    server = make_server(session, Access(TOKEN))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Served(session, server.server_port, output)
    session.close()
    server.shutdown()
    server.server_close()
