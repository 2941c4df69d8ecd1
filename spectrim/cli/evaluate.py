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


Models = Annotated[list[str], typer.Argument(help="Dense or compressed models.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Evaluation text, or labeled examples; repeat for several (default without "
        "tasks: python:held_out)."
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="Questions with exact answers: FILE.jsonl, gsm8k:FILE, arithmetic:test:500."
    ),
]
Sizes = Annotated[
    list[float] | None, typer.Option(help="Size of elastic checkpoints; repeat for several.")
]
Original = Annotated[
    str | None, typer.Option(help="Original model, to measure the KL divergence from.")
]
Tokens = Annotated[int, typer.Option(help="Number of tokens to evaluate on.")]
Length = Annotated[int | None, typer.Option(help="Tokens per chunk.")]
Rows = Annotated[
    Literal["prefixed", "packed"],
    typer.Option(help="Start rows as the tokenizer starts a text, or anywhere, as papers do."),
]
HarnessTasks = Annotated[
    str | None, typer.Option(help="Tasks of lm-evaluation-harness, separated by commas.")
]
TaskPath = Annotated[
    Path | None, typer.Option(help="Directory of your own lm-eval task files (YAML).")
]
Shots = Annotated[int | None, typer.Option(help="Examples before each question.")]
Limit = Annotated[int | None, typer.Option(help="Examples per lm-eval task.")]


def evaluate(
    models: Models,
    data: Data = None,
    task: Task = None,
    budget: Sizes = None,
    original: Original = None,
    tokens: Tokens = EVALUATION_TOKENS,
    length: Length = None,
    rows: Rows = "prefixed",
    lm_eval: HarnessTasks = None,
    task_path: TaskPath = None,
    shots: Shots = None,
    limit: Limit = None,
    merge_adapter: MergeAdapter = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Measure the perplexity, divergence, task accuracy and size of models."""
    from spectrim.cli import console
    from spectrim.evaluation import HarnessSettings

    names = [name.strip() for name in (lm_eval or "").split(",") if name.strip()]
    texts = data or ([] if task or names else ["python:held_out"])
    harness = HarnessSettings(task_path, shots, limit)
    asked = _Asked(texts, task, names, harness, (length, tokens, rows))
    opening = _Opening(merge_adapter, trust_remote_code)
    text_only = {"--task": task, "--lm-eval": lm_eval, "--budget": budget}
    examples = _need_labels(models, asked, opening, text_only)
    reference = None if original is None else opening.load(original).model
    results: dict[str, dict[str, Any]] = {}
    for model, size in product(models, budget or (None,)):
        name = model if size is None else f"{model} at {size:g}"
        loaded = opening.load(model, size)
        measure = _figures_of_examples if model in examples else _figures
        results[name] = {} if opening.merges(model) else _disk_bytes(model)
        results[name] |= measure(loaded, reference, asked)
    if json:
        console.as_json(results)
    else:
        console.figures_table(evaluation_rows(results))


@dataclass(frozen=True)
class _Opening:
    """How models are opened: adapters merged or not, with code of their own or without."""

    merge_adapter: bool
    trust_remote_code: bool

    def merges(self, name: str) -> bool:
        from spectrim.checkpoint import is_adapter

        return self.merge_adapter and is_adapter(name)

    def load(self, name: str, size: float | None = None) -> LoadedModel:
        """Load a model of any kind; size: of an elastic checkpoint."""
        from spectrim.pipeline.loaded_model import load_model

        return load_model(name, self.trust_remote_code, size, True, self.merges(name))


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


def _need_labels(
    models: list[str], asked: _Asked, opening: _Opening, text_only: dict[str, Any]
) -> list[str]:
    """Return the models that are evaluated on examples.

    Raises InputError for a text or examples that cannot be read.

    text_only: the options, by name, that such models do not take.
    """
    from spectrim.checkpoint import stored_kind
    from spectrim.cli.ahead import base_of
    from spectrim.data.loading import join_specs
    from spectrim.pipeline.early_checks import check_documents, check_labels

    bases = {name: base_of(name, opening.merges(name)) for name in models}
    examples = [name for name in models if stored_kind(bases[name]).labeled]
    for name in examples:
        check_text_only(name, text_only)
        check_labels(bases[name], join_specs(asked.texts))
    for name in (name for name in models if asked.texts and name not in examples):
        remote = opening.trust_remote_code
        check_documents(bases[name], join_specs(asked.texts), trust_remote_code=remote)
    return examples


def _figures_of_examples(loaded: LoadedModel, reference: Any, asked: _Asked) -> dict[str, Any]:
    from spectrim.data.loading import join_specs
    from spectrim.pipeline.evaluate import evaluate_examples
    from spectrim.pipeline.labeled import ExampleSettings

    length, tokens, _ = asked.blocks
    wanted = ExampleSettings(join_specs(asked.texts), length=length, tokens=tokens)
    return evaluate_examples(loaded.model, loaded.tokenizer, wanted, reference)


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
    from spectrim.report.formatting import percent, ratio, size

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
        if (agreement := figures.get("top1_agreement")) is not None:
            shown[name]["top1_agreement"] = percent(round(agreement, 3))
    return shown


def _disk_bytes(name: str) -> dict[str, float]:
    from spectrim.checkpoint import resolve
    from spectrim.evaluation import size

    place = resolve(name)
    return {"disk_bytes": size.disk_bytes(place)} if isinstance(place, Path) else {}
