"""`spectrim evaluate`: perplexity, divergence, task accuracy and sizes, side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from spectrim.cli.options import Json, RemoteCode

_TOKENS = 20_000


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Dense or compressed models.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluation text, repeat for several (default python:held_out without tasks)."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Examples to answer: FILE.jsonl, gsm8k:FILE, arithmetic:test:500."),
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="Model to measure the KL divergence from.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to use.")] = _TOKENS,
    length: Annotated[int | None, typer.Option(help="Tokens per chunk.")] = None,
    rows: Annotated[
        Literal["prefixed", "packed"],
        typer.Option(
            help="Rows that begin as the tokenizer begins a text, or anywhere, as in papers."
        ),
    ] = "prefixed",
    lm_eval: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness, separated by commas."),
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option(help="Directory of your own lm-eval task files (YAML).")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Examples before each question.")] = None,
    limit: Annotated[int | None, typer.Option(help="Examples per lm-eval task.")] = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Measure perplexity, divergence, task accuracy and size of models."""
    from spectrim.cli import console
    from spectrim.data import BlockSettings
    from spectrim.data.loading import join_specs
    from spectrim.evaluation import HarnessSettings, evaluate_harness
    from spectrim.pipeline.calibration_size import default_length
    from spectrim.pipeline.evaluate import evaluate as evaluate_text
    from spectrim.pipeline.evaluate import evaluate_documents, evaluate_task
    from spectrim.pipeline.loaded_model import load_model
    from spectrim.pipeline.recipe import TaskRecipe
    from spectrim.runtime import distributed

    harness_tasks = [name.strip() for name in (lm_eval or "").split(",") if name.strip()]
    harness = HarnessSettings(task_path, shots, limit)
    reference = load_model(original, trust_remote_code).model if original else None
    results: dict[str, dict[str, Any]] = {}
    for name in models:
        loaded = load_model(name, trust_remote_code)
        model, tokenizer = loaded.model, loaded.tokenizer
        settings = BlockSettings(
            length=length or default_length(model),
            max_tokens=tokens,
            keep_tail=True,
            rows=rows,
        )
        results[name] = _disk_bytes(name)
        if task:
            results[name] |= evaluate_task(model, tokenizer, TaskRecipe(data=task))
        if harness_tasks:
            results[name] |= distributed.run_on_main(
                partial(evaluate_harness, model, tokenizer, harness_tasks, harness)
            )
        if data or not (task or harness_tasks):
            text = join_specs(data or ["python:held_out"])
            results[name] |= evaluate_text(model, tokenizer, text, settings, reference)
            results[name] |= evaluate_documents(model, tokenizer, text, settings)
    if json:
        console.as_json(results)
    else:
        console.figures_table(results)


def _disk_bytes(name: str) -> dict[str, float]:
    from spectrim.checkpoint import resolve
    from spectrim.evaluation import size

    place = resolve(name)
    return {"disk_bytes": size.disk_bytes(place)} if isinstance(place, Path) else {}
