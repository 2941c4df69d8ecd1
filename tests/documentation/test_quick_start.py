"""The commands of docs/quick_start.md, one after the other, in an environment of their own."""

from __future__ import annotations

import shlex

import pytest

from tests.documentation.pages import ROOT
from tests.serving.page import PORT, blocks, own_environment
from tests.serving.servers import free_port, running

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "quick_start.md"
QUICK = "--recipe fast --sequences 8 --length 64 --cache cache"
"""Added to what calibrates; the page's own take a minute each."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    for name in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(name, reason=f"needs {name}, of the extra 'serve'")
    return own_environment(tmp_path_factory.mktemp("quick_start"))


def test_the_page_from_plan_to_server(environment):
    steps = [block for block in blocks(PAGE) if block.role in ("run", "server")]
    [server] = [block for block in steps if block.role == "server"]
    before = steps[: steps.index(server)]
    [client] = steps[steps.index(server) + 1 :]
    printed = [environment.run(_shortened(block)) for block in before]
    assert (environment.directory / "curve.svg").exists()
    assert (environment.directory / "small" / "spectrim_report.html").exists()
    evaluation, generated = printed[3:5]
    assert all(word in evaluation for word in ("reference", "small", "smaller", "divergence"))
    assert "def read(self, path):" in generated
    port = free_port()
    command = shlex.split(server.text.strip().replace(PORT, str(port)))
    with running(command, port, environment, 300):
        answer = environment.run(client, port).removesuffix("\n")
    assert answer
    assert answer in generated


def _shortened(block):
    command = " ".join(block.text.split()[:2])
    if command in ("spectrim plan", "spectrim compress"):
        return block.replaced(command, f"{command} {QUICK}")
    if command == "spectrim evaluate":
        return block.replaced(command, f"{command} --tokens 512")
    return block
