"""`spectrim explore`: the live report page before there is a result, on this machine only."""

from __future__ import annotations

import json as json_text
import secrets
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli import console, progress
from spectrim.cli.interrupts import interruptible
from spectrim.cli.options import (
    Json,
    Model,
    Overwrite,
    RemoteCode,
    cache_from,
    check_text,
    recipe_of,
    with_recipe_options,
)
from spectrim.errors import InputError

if TYPE_CHECKING:
    from spectrim.report.live import Access, Session


@with_recipe_options("latency_budget", "elastic", "experts")
def explore(
    model: Model,
    given: dict[str, Any],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Directory that the Compress button writes."),
    ] = None,
    plan: Annotated[Path, typer.Option(help="File that the Save plan button writes.")] = Path(
        "plan.yaml"
    ),
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other makes the page public.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Open a live page that shows loss, bytes and ranks at any size."""
    recipe = recipe_of(given)
    if host in ("", "0.0.0.0", "::"):
        raise InputError(f"--host '{host}': give the one address that browsers will use")

    from spectrim.checkpoint import check_output
    from spectrim.pipeline import compatibility
    from spectrim.pipeline.early_checks import check_early
    from spectrim.pipeline.loaded_model import load_original
    from spectrim.pipeline.plan import factorize
    from spectrim.report.live import Access, Places, Session
    from spectrim.runtime.context import RunContext

    compatibility.check(recipe, compatibility.EXPLORE)
    check_text(recipe, model)
    check_early(model, recipe, trust_remote_code)
    if output is not None:
        check_output(output, overwrite)
    original = load_original(model, trust_remote_code)
    recipe = original.with_save_dtype(recipe)
    cache = cache_from(given)
    decomposition = factorize(
        original.model, original.tokenizer, recipe, RunContext(cache, progress.track)
    )
    places = Places(plan, output, overwrite, cache)
    session = Session(original, decomposition, recipe, places)
    announce = _as_json if json else _as_note
    _serve(session, Access(secrets.token_urlsafe(24), host), port, open_, announce)


def _as_json(address: str) -> None:
    print(json_text.dumps({"address": address}), flush=True)


def _as_note(address: str) -> None:
    console.note(f"explore at {address}\nCtrl-C ends it")


def _serve(
    session: Session,
    access: Access,
    port: int,
    opened: bool,
    log_metrics: Callable[[str], None],
) -> None:
    from spectrim.report.live import make_server

    try:
        server = make_server(session, access, port)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {access.host}:{port}: {error}") from error
    address = f"http://{access.host}:{server.server_port}/?token={access.token}"
    log_metrics(address)
    if opened:
        webbrowser.open(address)
    try:
        with interruptible():
            server.serve_forever()
    except KeyboardInterrupt:
        console.note("ended")
    finally:
        session.job.stop()
        session.job.wait()
        server.server_close()
