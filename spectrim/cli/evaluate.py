"""`spectrim evaluate`: perplexity, divergence, task accuracy and sizes, side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spectrim.cli.options import Json, MergeAdapter, RemoteCode
from spectrim.errors import InputError
from spectrim.pipeline.defaults import EVALUATION_TOKENS

if TYPE_CHECKING:
    from spectrim.evaluation import HarnessSettings
    from spectrim.pipeline.loaded_model import LoadedModel

_IN_OTHER_ROWS = ("disk_bytes", "stored_bytes", "loss_increase", "reference_perplexity")
"""Figures that the table tells in another row."""


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Dense or compressed models.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluation text, or examples with labels of models that need them; repeat "
            "for several (default python:held_out without tasks)."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Examples to answer: FILE.jsonl, gsm8k:FILE, arithmetic:test:500."),
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Sizes of elastic checkpoints, repeat for several."),
    ] = None,
    original: Annotated[
        str | None, typer.Option(help="Model to measure the KL divergence from.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to use.")] = EVALUATION_TOKENS,
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
    merge_adapter: MergeAdapter = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Measure perplexity, divergence, task accuracy and size of models."""
    from spectrim.checkpoint import is_adapter, stored_kind
    from spectrim.cli import console
    from spectrim.cli.ahead import base_of
    from spectrim.data.loading import join_specs
    from spectrim.evaluation import HarnessSettings
    from spectrim.pipeline.early_checks import check_documents, check_labels
    from spectrim.pipeline.evaluate import evaluate_examples
    from spectrim.pipeline.labeled import ExampleSettings
    from spectrim.pipeline.loaded_model import load_model

    names = [name.strip() for name in (lm_eval or "").split(",") if name.strip()]
    texts = data or ([] if task or names else ["python:held_out"])
    harness = HarnessSettings(task_path, shots, limit)
    adapters = [name for name in models if merge_adapter and is_adapter(name)]
    bases = {name: base_of(name, name in adapters) for name in models}
    examples = [name for name in models if stored_kind(bases[name]).labeled]
    for name in examples:
        check_text_only(name, {"--task": task, "--lm-eval": lm_eval, "--budget": budget})
        check_labels(bases[name], join_specs(texts))
    for name in (name for name in models if texts and name not in examples):
        check_documents(bases[name], join_specs(texts), trust_remote_code=trust_remote_code)
    asked = _Asked(texts, task, names, harness, (length, tokens, rows))
    reference = None
    if original is not None:
        merges = merge_adapter and is_adapter(original)
        reference = load_model(original, trust_remote_code, None, True, merges).model
    results: dict[str, dict[str, Any]] = {}
    for model_name, size in product(models, budget or (None,)):
        name = model_name if size is None else f"{model_name} at {size:g}"
        loaded = load_model(model_name, trust_remote_code, size, True, model_name in adapters)
        results[name] = {} if model_name in adapters else _disk_bytes(model_name)
        if model_name in examples:
            wanted = ExampleSettings(join_specs(texts), length=length, tokens=tokens)
            given = loaded.model, loaded.tokenizer, wanted, reference
            results[name] |= evaluate_examples(*given)
        else:
            results[name] |= _figures(loaded, reference, asked)
    if json:
        console.as_json(results)
    else:
        console.figures_table(evaluation_rows(results))


@dataclass(frozen=True)
class _Asked:
    """What to measure.

    Attributes:
        texts: sources of text.
        task: examples to answer.
        harness_tasks: tasks of lm-evaluation-harness.
        harness: how they are run.
        blocks: length, tokens and rows of the texts.
    """

    texts: list[str]
    task: str | None
    harness_tasks: list[str]
    harness: HarnessSettings
    blocks: tuple[int | None, int, Literal["prefixed", "packed"]]


def _figures(loaded: LoadedModel, reference: Any, asked: _Asked) -> dict[str, Any]:
    from spectrim.data.loading import join_specs
    from spectrim.evaluation import evaluate_harness
    from spectrim.pipeline.evaluate import (
        evaluate,
        evaluate_documents,
        evaluate_task,
        evaluation_settings,
    )
    from spectrim.pipeline.recipe import TaskRecipe
    from spectrim.runtime import distributed

    model, tokenizer = loaded.model, loaded.tokenizer
    settings = evaluation_settings(model, *asked.blocks)
    found: dict[str, Any] = {}
    if asked.task:
        found |= evaluate_task(model, tokenizer, TaskRecipe(data=asked.task))
    if asked.harness_tasks:
        given = model, tokenizer, asked.harness_tasks, asked.harness
        found |= distributed.run_on_main(partial(evaluate_harness, *given))
    if asked.texts:
        text = join_specs(asked.texts)
        found |= evaluate(model, tokenizer, text, settings, reference)
        found |= evaluate_documents(model, tokenizer, text, settings)
    return found


def check_text_only(name: str, given: dict[str, Any]) -> None:
    """Raise InputError for options that a model whose loss needs labels does not take."""
    if wrong := [option for option, value in given.items() if value]:
        raise InputError(
            f"{wrong[0]} is for causal language models; {name} is evaluated on examples with "
            "labels: give --data"
        )


def evaluation_rows(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures to print: perplexity and its ratio first, one size with its unit.

    The ratio is to `--original`, else to the first model.
    """
    from spectrim.report.formatting import ratio, size

    first = next(iter(results.values()), {}).get("perplexity")
    shown = {}
    for name, figures in results.items():
        found: dict[str, Any] = {}
        if "perplexity" in figures:
            found["perplexity"] = figures["perplexity"]
            if (increase := figures.get("loss_increase")) is None and len(results) > 1:
                increase = math.log(figures["perplexity"] / first)
            if increase is not None:
                found["perplexity_ratio"] = ratio(increase)
        stored = figures.get("disk_bytes") or figures.get("stored_bytes")
        found["size"] = "-" if stored is None else size(stored)
        shown[name] = found | {k: v for k, v in figures.items() if k not in _IN_OTHER_ROWS}
    return shown


def _disk_bytes(name: str) -> dict[str, float]:
    from spectrim.checkpoint import resolve
    from spectrim.evaluation import size

    place = resolve(name)
    return {"disk_bytes": size.disk_bytes(place)} if isinstance(place, Path) else {}
