"""Evaluate a model on a text or a task."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from spectrim.data import BlockSettings, check_vocabulary, document_blocks, token_blocks
from spectrim.evaluation import evaluate_model, perplexity
from spectrim.evaluation.tasks.accuracy import exact_match
from spectrim.models.hooks import inference
from spectrim.pipeline.calibration_size import default_length, vocabulary_size
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

    Raises InputError for unusable data, NumericalError for a loss that is not finite.
    """
    settings = settings or BlockSettings(length=default_length(model), keep_tail=True)
    blocks = token_blocks(data, tokenizer, settings)
    check_vocabulary(blocks, vocabulary_size(model))
    names = ["perplexity", "size", *(["kl_divergence"] if reference is not None else [])]
    return evaluate_model(model, blocks, names, reference)


def evaluate_task(
    model: PreTrainedModel, tokenizer: Any, recipe: TaskRecipe
) -> dict[str, float]:
    """Return the loss per scored token, and the accuracy of greedily decoded answers.

    Raises InputError for a task that cannot be read.
    """
    examples = load_task_examples(recipe)
    rows = encode_examples(model, tokenizer, recipe, examples)

    def figures() -> tuple[float, dict[str, Any]]:
        with inference(model):
            loss = Objective(rows).value(model)
        return loss, dict(exact_match(model, tokenizer, examples))

    loss, found = distributed.run_on_main(figures)
    names = ("accuracy", "count", "answered")
    return {"task_loss": loss} | {name: float(found[name]) for name in names}


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
