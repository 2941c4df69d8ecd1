"""`spectrim report`: write the page of a compressed model again, or with a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectrim.cli import console
from spectrim.cli.options import Json, RemoteCode, Size
from spectrim.cli.text_errors import errors_on
from spectrim.errors import InputError
from spectrim.pipeline.defaults import EVALUATION_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spectrim.report.facts import ReportData

_PAGE = "spectrim_report.html"


def report(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of a compressed model.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=f"HTML file (default: {_PAGE} in the directory)."),
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="Model to compare with; shows the text of both.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Text to measure the divergence on; needs --original.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompt to continue (default: sampled from the original)."),
    ] = None,
    budget: Size = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Write the HTML report of a compressed model, optionally with a comparison."""
    if budget is not None and output is None:
        raise InputError("--budget: the report of one size goes to a file; name it with -o")
    if original is None and (data or prompt):
        raise InputError("--data and --prompt compare two models; name one with --original")

    from spectrim.checkpoint import add_text_file
    from spectrim.report.load import facts_in, report_extras
    from spectrim.report.page import report_page
    from spectrim.runtime.files import write_text

    facts = facts_in(checkpoint, trust_remote_code)
    if budget is not None:
        from spectrim.report.size_facts import SizeFacts

        facts = SizeFacts(checkpoint).at(budget)
    if original is not None:
        facts = _compare(facts, checkpoint, original, trust_remote_code, (data, prompt or []))
    if output is not None:
        write_text(output, report_page(facts))
    else:
        for name, text in report_extras(facts).items():
            add_text_file(checkpoint, name, text)
    if json:
        console.as_json(
            {"report": str(output or checkpoint / _PAGE), **headline_figures(facts)}
        )
    console.note(f"report in {output or checkpoint / _PAGE}")


def headline_figures(facts: ReportData) -> dict[str, float | None]:
    """Return the headline figures of the page."""
    return {
        "kept": facts.kept,
        "predicted_loss": facts.predicted_loss,
        "measured_divergence": facts.result,
        "measured_loss_increase": facts.loss_increase,
        "compression_error": facts.score,
        "same_next_token": facts.agreement,
    }


def _with_errors(
    facts: ReportData, checkpoint: Path, smaller: PreTrainedModel, given: tuple[str, str]
) -> ReportData:
    """Add the compression errors on a text, or note why there are none."""
    from spectrim.report.compare import with_errors

    data, original = given
    try:
        errors = errors_on(checkpoint, smaller, data, EVALUATION_TOKENS, original)
    except InputError as error:
        console.note(f"no compression errors on the page: {error}")
        return facts
    return facts if errors is None else with_errors(facts, errors, data)


def _compare(
    facts: ReportData,
    checkpoint: Path,
    original: str,
    trust_remote_code: bool,
    asked: tuple[str | None, list[str]],
) -> ReportData:
    """Add the divergence on a text, and continuations of prompts."""
    import torch

    from spectrim.checkpoint import is_elastic, load
    from spectrim.data import token_blocks
    from spectrim.pipeline.evaluate import evaluation_settings
    from spectrim.pipeline.loaded_model import load_model
    from spectrim.report.compare import with_divergence, with_texts

    data, prompts = asked
    dense = load_model(original, trust_remote_code)
    size = {"budget": facts.budget} if is_elastic(checkpoint) else {}
    options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    smaller, _ = load(checkpoint, **size, **options)
    if data is not None:
        blocks = token_blocks(data, dense.tokenizer, evaluation_settings(dense.model))
        facts = with_divergence(facts, dense.model, smaller, blocks)
        facts = _with_errors(facts, checkpoint, smaller, (data, original))
    return with_texts(facts, dense.model, smaller, dense.tokenizer, prompts)
