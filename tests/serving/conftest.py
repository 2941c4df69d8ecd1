"""A compressed model, and the server of `docs/serving.md`'s own command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoint.elastic_models import Elastic
from tests.serving.compressing import compress_mixed, save, small_qwen2
from tests.serving.page import PORT, Environment, own_environment, section
from tests.serving.servers import free_port, running

START = 120.0
"""Seconds; it takes five on an idle machine."""


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> Environment:
    """With `small`, a compressed model, and `every`, one of all sizes that states .5."""
    environment = own_environment(tmp_path_factory.mktemp("serving"))
    save_small(environment.directory)
    save_every(environment.directory / "every")
    return environment


@pytest.fixture(scope="session")
def port(environment):
    """Of `transformers serve`, as the page starts it, once spectrim is activated."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason=f"needs {name}, of the extra 'serve'")
    environment.run(section("transformers serve", "run")[0])
    with _serving("small", environment) as free:
        yield free


@pytest.fixture(scope="session")
def elastic_port(environment, port):
    """Of another server, with the checkpoint of all sizes."""
    environment.run(section("transformers serve", "run")[0])  # a test of the page removes it
    with _serving("every", environment) as free:
        yield free


@contextmanager
def _serving(name: str, environment: Environment) -> Iterator[int]:
    [block] = section("transformers serve", "server")
    port = free_port()
    command = shlex.split(block.text.replace(PORT, str(port)).replace("small", name))
    with running(command, port, environment, START):
        yield port


def save_small(directory: Path) -> Path:
    model = small_qwen2()
    config = compress_mixed(model, ("pivoted", "lowrank", "dense"))
    return save(model, config, directory / "small")


def save_every(directory: Path) -> None:
    Elastic.make(small_qwen2(), "pivoted", directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["elastic"]["budget"] = 0.5
    path.write_text(json.dumps(config))
