"""`spectrim report`: the page of a compressed model, again or with more on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from spectrim import checkpoint as checkpoint_module
from spectrim.cli import console
from spectrim.cli.commands import Json, RemoteCode, _load, app
from spectrim.data import BlockSettings, token_blocks
from spectrim.errors import InputError
from spectrim.pipeline.calibrate import default_length
from spectrim.report.compare import with_divergence, with_texts
from spectrim.report.facts import PAGE_FILE, ReportData
from spectrim.report.load import Pair, facts_in, report_extras
from spectrim.report.page import report_page
from spectrim.runtime.files import write_text


@app.command()
def report(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of a compressed model.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=f"HTML file, else {PAGE_FILE} there.")
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="Model to compare with: its text beside this one's.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Text to measure the divergence on; needs --original.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="To continue; else drawn from the original.")
    ] = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """One HTML page: size and quality, ranks, spectra, bytes, text before and after."""
    if original is None and (data or prompt):
        raise InputError("--data and --prompt compare two models; name one by --original")
    facts = facts_in(checkpoint, trust_remote_code)
    if original is not None:
        pair = _pair(original, checkpoint, trust_remote_code)
        facts = _compared(facts, pair, data, prompt or [])
    if output is not None:
        write_text(output, report_page(facts))
    else:
        for name, text in report_extras(facts).items():
            checkpoint_module.add_text_file(checkpoint, name, text)
    if json:
        console.as_json(
            {"report": str(output or checkpoint / PAGE_FILE), **headline_figures(facts)}
        )
    console.note(f"report in {output or checkpoint / PAGE_FILE}")


def headline_figures(facts: ReportData) -> dict[str, float | None]:
    """The figures that the page opens with."""
    return {
        "kept": facts.kept,
        "predicted_loss": facts.predicted_loss,
        "measured_divergence": facts.result,
        "same_next_token": facts.agreement,
    }


def _pair(original: str, checkpoint: Path, trust_remote_code: bool) -> Pair:
    dense, tokenizer, stored = _load(original, trust_remote_code)
    smaller, _ = checkpoint_module.load(
        checkpoint, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    return Pair(dense, smaller, tokenizer, stored)


def _compared(
    facts: ReportData, pair: Pair, data: str | None, prompts: list[str]
) -> ReportData:
    if data is not None:
        length = default_length(pair.original)
        settings = BlockSettings(length=length, keep_tail=True, max_tokens=20_000)
        blocks = token_blocks(data, pair.tokenizer, settings)
        facts = with_divergence(facts, pair.original, pair.smaller, blocks)
    return with_texts(facts, pair.original, pair.smaller, pair.tokenizer, prompts)
