"""A server on the loopback address for the length of a `with` block, and never longer."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.serving.page import Environment

HOST = "127.0.0.1"
_PATIENCE = 10.0
"""Seconds to end by itself after it was asked to."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str], port: int, environment: Environment, seconds: float
) -> Iterator[None]:
    """A server that answers at `/health`. Fails with the log's end when it stops before, or is
    not up within `seconds`."""
    log = environment.directory / f"{port}.log"
    variables = environment.variables()
    program = shutil.which(command[0], path=variables["PATH"])
    assert program is not None, command[0]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, *command[1:]],
            cwd=environment.directory,
            env=variables,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await(process, f"http://{HOST}:{port}/health", log, time.monotonic() + seconds)
        yield
    finally:
        _end(process)


def _await(process: subprocess.Popen[bytes], url: str, log: Path, deadline: float) -> None:
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server stopped: {_tail(log)}"
        if _answers(url):
            return
        time.sleep(0.2)
    raise AssertionError(f"the server was not up in time: {_tail(log)}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group, by force where asking does not help."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
            return


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
