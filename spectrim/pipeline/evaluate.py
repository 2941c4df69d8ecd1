"""Evaluate a model on a text or a task."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from spectrim.data import BlockSettings, check_vocabulary, document_blocks, token_blocks
from spectrim.data.blocks import RowKind
from spectrim.evaluation import evaluate_labeled, evaluate_model, perplexity, size
from spectrim.evaluation.tasks.accuracy import exact_match
from spectrim.models.hooks import inference
from spectrim.models.kind import kind_of
from spectrim.pipeline.calibration_defaults import default_length, vocabulary_size
from spectrim.pipeline.defaults import EVALUATION_TOKENS
from spectrim.pipeline.labeled import ExampleSettings, labeled_rows
from spectrim.pipeline.recipe import TaskRecipe
from spectrim.pipeline.tasks import encode_examples, load_task_examples
from spectrim.pruning import Objective
from spectrim.runtime import distributed


def evaluate(
    model: PreTrainedModel,
    tokenizer: Any,
    data: str,
    settings: BlockSettings | None = None,
    reference: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Return token perplexity on `data`, sizes, and with a reference the divergence from it.

    Without `settings` the first `EVALUATION_TOKENS` tokens count, as on the command line. Of a
    model whose loss needs labels these are the figures of `evaluate_examples`.
    Raises InputError for unusable data, NumericalError for a loss that is not finite.
    """
    if kind_of(model).labeled:
        wanted = ExampleSettings(data, tokens=EVALUATION_TOKENS)
        if settings is not None:
            wanted = ExampleSettings(data, length=settings.length, tokens=settings.max_tokens)
        return evaluate_examples(model, tokenizer, wanted, reference)
    settings = settings or evaluation_settings(model)
    blocks = token_blocks(data, tokenizer, settings)
    check_vocabulary(blocks, vocabulary_size(model))
    names = ["perplexity", "size", *(["kl_divergence"] if reference is not None else [])]
    return evaluate_model(model, blocks, names, reference)


def evaluate_examples(
    model: PreTrainedModel,
    tokenizer: Any,
    settings: ExampleSettings,
    reference: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Return loss, accuracy and size of a model on examples with labels, in the file's order.

    Raises InputError for records that are no examples, NumericalError for a loss that is not
    finite.
    """
    rows = labeled_rows(model, tokenizer, settings)
    figures = evaluate_labeled(model, rows, reference)
    return figures | size.evaluate(model, None, size.Options(), reference)


def evaluation_settings(
    model: PreTrainedModel,
    length: int | None = None,
    tokens: int = EVALUATION_TOKENS,
    rows: RowKind = "prefixed",
) -> BlockSettings:
    """Return the rows of an evaluation: whole documents in order, the last row cut short."""
    return BlockSettings(
        length=length or default_length(model), max_tokens=tokens, keep_tail=True, rows=rows
    )


def evaluate_task(
    model: PreTrainedModel, tokenizer: Any, recipe: TaskRecipe
) -> dict[str, float]:
    """Return the loss per scored token, and the accuracy of greedily decoded answers.

    `answered` is the share of the `count` examples with a final answer.

    Raises InputError for a task that cannot be read.
    """
    examples = load_task_examples(recipe)
    rows = encode_examples(model, tokenizer, recipe, examples)

    def figures() -> tuple[float, dict[str, Any]]:
        with inference(model):
            loss = Objective(rows).value(model)
        return loss, dict(exact_match(model, tokenizer, examples))

    loss, found = distributed.run_on_main(figures)
    return {"task_loss": loss} | {n: found[n] for n in ("accuracy", "count", "answered")}


def evaluate_documents(
    model: PreTrainedModel, tokenizer: Any, data: str, settings: BlockSettings
) -> dict[str, float]:
    """Return perplexity with every document scored alone, and the median document's."""
    blocks = document_blocks(data, tokenizer, settings)
    check_vocabulary(blocks, vocabulary_size(model))
    figures = perplexity.per_document(model, blocks, perplexity.Options())
    return {
        "per_document_perplexity": figures["perplexity"],
        "median_document_perplexity": figures["median_document_perplexity"],
    }
