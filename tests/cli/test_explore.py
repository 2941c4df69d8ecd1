"""`spectrim explore` from a terminal: it prints its address, serves, and ends on Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.cli.conftest import SMALL


def ignore_interrupts() -> None:
    """As a shell starts its background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_interrupted(shelf, tmp_path, number):
    command = (sys.executable, "-m", "spectrim", "explore", shelf / "model")
    environment = os.environ | {"SPECTRIM_CACHE": str(shelf / "cache"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*map(str, command), "--data", str(shelf / "text.txt"), *SMALL, "-o", "out"],
        cwd=tmp_path,
        env=environment,
        preexec_fn=ignore_interrupts,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        found = None
        while found is None:
            line = process.stderr.readline()
            assert line, "ended before it served"
            found = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S{30,}", line)
        page = urllib.request.urlopen(found[0], timeout=60).read().decode()
        assert 'id="budget"' in page
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(found[0].partition("?")[0], timeout=60)
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "give the one address"),
        (("--port", "99999"), "cannot listen"),
        (("--recipe", "task", "--task", "arithmetic:train:20"), "no curve to explore"),
        (("--latency-budget", "0.9"), "slider is a fraction of the weights"),
        (("--layer", "sparse_dictionary"), "predicts no loss"),
    ],
)
def test_what_cannot_be_explored(cli, shelf, options, message):
    data = ("--data", shelf / "text.txt")
    outcome = cli("explore", shelf / "model", *data, *SMALL, *options)
    assert message in outcome.failed_with_one_line()


def test_a_recipe_for_an_elastic_checkpoint_is_refused(cli, shelf, tmp_path):
    out = tmp_path / "elastic"
    data = ("--data", shelf / "text.txt", "--no-probe", "--no-report")
    done = cli("compress", shelf / "model", "-o", out, "--elastic", "0.4..0.9", *data, *SMALL)
    assert done.code == 0, done.err
    outcome = cli("explore", out, "--data", shelf / "text.txt")
    assert "holds all of its sizes" in outcome.failed_with_one_line()
    outcome = cli("explore", out, "--port", "99999")
    assert "cannot listen" in outcome.failed_with_one_line()
