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
    from spectrim.pipeline.recipe import Recipe
    from spectrim.report.live import Access, ElasticSession, Places, Session


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
    """Open a live page: loss, bytes and ranks at any size; of an elastic model also text."""
    recipe = recipe_of(given)
    if host in ("", "0.0.0.0", "::"):
        raise InputError(f"--host '{host}': give the one address that browsers will use")

    from spectrim.checkpoint import check_output, is_elastic
    from spectrim.report.live import Access, Places

    elastic = is_elastic(model)
    if elastic:
        _check_no_recipe(recipe, model)
    places = Places(None if elastic else plan, output, overwrite, cache_from(given))
    if output is not None:
        check_output(output, overwrite)
    session = (
        _elastic_session(model, places, trust_remote_code)
        if elastic
        else _session(model, recipe, places, trust_remote_code)
    )
    announce = _as_json if json else _as_note
    _serve(session, Access(secrets.token_urlsafe(24), host), port, open_, announce)


def _session(model: str, recipe: Recipe, places: Places, remote_code: bool) -> Session:
    """Calibrate and decompose a dense model, to plan it at any size."""
    from spectrim.pipeline import compatibility
    from spectrim.pipeline.early_checks import check_early
    from spectrim.pipeline.loaded_model import load_original
    from spectrim.pipeline.plan import factorize
    from spectrim.report.live import Session
    from spectrim.runtime.context import RunContext

    compatibility.check(recipe, compatibility.EXPLORE)
    check_text(recipe, model)
    check_early(model, recipe, remote_code)
    original = load_original(model, remote_code)
    recipe = original.with_save_dtype(recipe)
    decomposition = factorize(
        original.model, original.tokenizer, recipe, RunContext(places.cache, progress.track)
    )
    return Session(original, decomposition, recipe, places)


def _elastic_session(model: str, places: Places, remote_code: bool) -> ElasticSession:
    from spectrim.pipeline.loaded_model import load_model
    from spectrim.report.live import ElasticSession

    if not Path(model).is_dir():
        raise InputError(f"{model}: download the checkpoint first and give its directory")
    return ElasticSession(load_model(model, remote_code), places)


def _check_no_recipe(recipe: Recipe, model: str) -> None:
    from spectrim.pipeline.recipe import Recipe

    if recipe != Recipe():
        raise InputError(
            f"{model} holds all of its sizes; leave out --data and the options of a recipe"
        )


def _as_json(address: str) -> None:
    print(json_text.dumps({"address": address}), flush=True)


def _as_note(address: str) -> None:
    console.note(f"explore at {address}\nCtrl-C ends it")


def _serve(
    session: Session | ElasticSession,
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
        session.close()
        server.server_close()
