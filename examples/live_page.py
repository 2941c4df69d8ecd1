"""The page of `spectrim explore`, asked as a browser asks it, and the page of the result.

    python examples/live_page.py reference --data python --output smaller

Factorises once, then takes plans of several sizes from the local server, lets it compress, and
leaves `smaller/spectrim_report.html`. Prints what each size costs and how long an answer takes.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import spectrim
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.report.facts import PAGE_FILE
from spectrim.report.live import Access, Places, Session, make_server

TOKEN = "any text that others cannot guess"


@contextmanager
def served(session: Session) -> Iterator[str]:
    """The address of a server on a free port of this machine, until the context ends."""
    server = make_server(session, Access(TOKEN))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    headers = {"X-Spectrim-Token": TOKEN, "Content-Type": "application/json"}
    request = urllib.request.Request(address + path, sent, headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="python")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budgets", default="0.9,0.8,0.7,0.6,0.5,0.4")
    parser.add_argument("--sequences", type=int, default=64)
    given = parser.parse_args(arguments)
    recipe = spectrim.Recipe().with_changes(
        calibration={"data": given.data, "sequences": given.sequences}
    )
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    decomposition = spectrim.factorize(model, tokenizer, recipe)
    original = LoadedModel(model, tokenizer, torch.bfloat16, given.model)
    session = Session(original, decomposition, recipe, Places(Path("plan.yaml"), given.output))
    seconds = []
    with served(session) as address:
        for budget in map(float, given.budgets.split(",")):
            begun = time.monotonic()
            plan = ask(address, f"/plan?budget={budget}")
            seconds.append(time.monotonic() - begun)
            print(f"{plan['kept']:.3f} kept: +{plan['loss']:.4f} nats, {plan['bytes']:,} bytes")
        ask(address, "/start", {"budget": budget})
        session.job.wait(None)
        print(ask(address, "/progress")["message"])
    page = given.output / PAGE_FILE
    figures = {
        "slowest_answer_ms": 1000 * max(seconds),
        "page_bytes": float(page.stat().st_size),
        "kept": plan["kept"],
    }
    print(figures)
    return figures


if __name__ == "__main__":
    main()
