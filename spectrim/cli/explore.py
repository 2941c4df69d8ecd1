"""`spectrim explore`: the report page before there is a result, on this machine only."""

from __future__ import annotations

import json as json_text
import secrets
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from spectrim import checkpoint
from spectrim.cli import console
from spectrim.cli.commands import Json, Model, Overwrite, RemoteCode, _load_original, app
from spectrim.cli.options import cache_from, recipe_of, with_recipe_options
from spectrim.errors import InputError
from spectrim.pipeline.plan import factorize
from spectrim.report.live import Access, Places, Session, make_server
from spectrim.report.live.session import Source
from spectrim.runtime.context import RunContext


@app.command()
@with_recipe_options
def explore(
    model: Model,
    given: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory that Compress writes.")
    ] = None,
    plan: Annotated[Path, typer.Option(help="File that Save plan writes.")] = Path("plan.yaml"),
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other opens it to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Calibrate, then try any size in a page: loss, bytes and ranks at once."""
    recipe = recipe_of(given)
    if recipe.pruning is not None:
        raise InputError("a recipe that selects bases has no curve to explore")
    if recipe.quantization is not None:
        raise InputError("explore plans factors in full precision; use compress --quantize")
    if recipe.latency is not None:
        raise InputError(
            "the page's slider is a share of the weights; plan by time with `spectrim plan "
            "--latency-budget`"
        )
    if host in ("", "0.0.0.0", "::"):
        raise InputError(f"--host '{host}': name the one address that browsers will ask for")
    if output is not None:
        checkpoint.check_output(output, overwrite)
    source = Source(model, *_load_original(model, trust_remote_code))
    context = RunContext(cache_from(given), console.track)
    decomposition = factorize(source.model, source.tokenizer, recipe, context)
    places = Places(plan, output, overwrite, cache_from(given))
    session = Session(source, decomposition, recipe, places)
    log_metrics = _as_json if json else _as_note
    _serve(session, Access(secrets.token_urlsafe(24), host), port, open_, log_metrics)


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
    try:
        server = make_server(session, access, port)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {access.host}:{port}: {error}") from error
    address = f"http://{access.host}:{server.server_port}/?token={access.token}"
    log_metrics(address)
    if opened:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.note("ended")
    finally:
        session.job.stop()
        session.job.wait()
        server.server_close()
