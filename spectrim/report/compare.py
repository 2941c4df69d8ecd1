"""Both models side by side: their divergence, and their continuations of prompts.

Default prompts are drawn from the original itself, so that no line of a calibration text
appears on a page: a few tokens after the token that starts a document, sampled at temperature 1
from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.data.labeled import LabeledRows
from spectrim.data.tasks import TaskExample
from spectrim.data.tokenizing import first_tokens
from spectrim.evaluation import evaluate_labeled, kl_divergence
from spectrim.evaluation.tasks.generation import Group, greedy_answers
from spectrim.models.hooks import inference
from spectrim.pipeline.compression_error import CompressionErrors
from spectrim.report.facts import Continuation, LayerRatio, ReportData

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 12, 48
DIVERGENCE_TOKENS = 4096
RATIOS = 8


def with_divergence(
    facts: ReportData, original: PreTrainedModel, smaller: PreTrainedModel, blocks: TokenBlocks
) -> ReportData:
    """Add KL(original || smaller) and both perplexities on the first tokens of `blocks`.

    The divergence is the expected increase of the loss under the original's own predictions.
    """
    rows = max(1, DIVERGENCE_TOKENS // blocks.ids.shape[1])
    part = blocks.select(torch.arange(min(rows, len(blocks))))
    figures = kl_divergence.evaluate(smaller, part, kl_divergence.Options(1), original)
    return replace(
        facts,
        result=figures["kl_divergence"],
        result_from=f"{part.ids.numel():,} tokens of {blocks.source}",
        agreement=figures["top1_agreement"],
        loss_increase=figures["loss_increase"],
        original_perplexity=figures["reference_perplexity"],
    )


def with_labeled_divergence(
    facts: ReportData, original: PreTrainedModel, smaller: PreTrainedModel, rows: LabeledRows
) -> ReportData:
    """Add loss, accuracy and divergence of both models on examples of all lengths."""
    part = rows.first_tokens(DIVERGENCE_TOKENS)
    figures = evaluate_labeled(smaller, part, original)
    right = "token_accuracy" if part.has_targets else "accuracy"
    loss, before = figures["reference_loss"], figures.get(f"reference_{right}")
    return replace(
        facts,
        result=figures.get("kl_divergence"),
        result_from=f"{len(part):,} examples of {rows.source}",
        agreement=figures.get("top1_agreement"),
        loss_increase=figures["loss_increase"],
        original_perplexity=math.exp(min(loss, 700.0)) if part.has_targets else None,
        original_loss=loss,
        accuracy=None if before is None else (before, figures[right]),
    )


def with_errors(facts: ReportData, errors: CompressionErrors, source: str) -> ReportData:
    """Add the layers whose errors on the text `source` are farthest above the calibration's."""
    layers = sorted(errors.layers, key=lambda layer: -layer.ratio)[:RATIOS]
    ratios = [LayerRatio(layer.name, layer.ratio, layer.drift) for layer in layers]
    return replace(facts, ratios=ratios, score=errors.score, score_from=source)


def with_texts(
    facts: ReportData,
    original: PreTrainedModel,
    smaller: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[str] = (),
) -> ReportData:
    """Add greedy continuations of `prompts`, by default of prompts drawn from the original."""
    examples = [
        TaskExample(prompt, "-") for prompt in prompts or draw_prompts(original, tokenizer)
    ]
    groups = [Group([number], NEW_TOKENS) for number in range(len(examples))]
    dense, small = (
        greedy_answers(model, tokenizer, examples, groups, lambda items, *more: items)
        for model in (original, smaller)
    )
    texts = [
        Continuation(example.prompt, first, second)
        for example, first, second in zip(examples, dense, small, strict=True)
    ]
    return replace(facts, texts=texts)


def draw_prompts(model: PreTrainedModel, tokenizer: Any) -> list[str]:
    """Draw openings of documents from the model; none if no token starts a document."""
    start = first_tokens(tokenizer)
    if not start:
        return []
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([start] * PROMPTS)
    with inference(model):
        for _ in range(PROMPT_TOKENS):
            logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, -1]
            chances = logits.double().cpu().softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    texts = tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
    return [text for text in texts if text.strip()]
