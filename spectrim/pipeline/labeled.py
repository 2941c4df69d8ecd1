"""The examples of models whose loss needs labels: encoder-decoders and sequence classifiers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spectrim.data import DEFAULT_TEXT
from spectrim.data.labeled import (
    ClassLabels,
    EncodingSettings,
    LabeledRows,
    Labels,
    Scores,
    Speech,
    TargetTexts,
    Transcripts,
    check_ids,
    encode_examples,
    encode_speech,
    read_examples,
)
from spectrim.data.loading import split_spec
from spectrim.errors import InputError, ModelError
from spectrim.models.context import check_length, context_length
from spectrim.models.kind import SEQ2SEQ, SPEECH, ModelKind, kind_of
from spectrim.pipeline.calibration_defaults import default_sequences
from spectrim.pipeline.recipe import CalibrationRecipe

LONGEST = 1024
"""Tokens of an input or a target, for models and tokenizers without a limit of their own."""
_SEVERAL = "multi_label_classification"


@dataclass(frozen=True)
class ExampleSettings:
    """Which examples to read.

    Attributes:
        data: a spec as of `--data`.
        field: names of the fields; default by their usual names.
        length: tokens of an input and of a target; default by model and tokenizer.
        examples: how many at most.
        tokens: of the inputs, at which no further example is read.
        seed: of their order; None keeps that of the file.
    """

    data: str
    field: str | None = None
    length: int | None = None
    examples: int | None = None
    tokens: int | None = None
    seed: int | None = None


def labeled_rows(
    model: PreTrainedModel, tokenizer: Any, settings: ExampleSettings
) -> LabeledRows:
    """Return encoded examples with labels for the model's own loss.

    Raises InputError for records that are no examples, and rows that the model cannot read.
    """
    labels = labels_for(kind_of(model), model.config.to_dict())
    examples = read_examples(settings.data, labels, settings.field, settings.seed)
    processor, speech = tokenizer, None
    if kind_of(model) is SPEECH:
        speech = speech_of(processor, model.config.to_dict(), settings.data)
        tokenizer = processor.tokenizer
    encoding = EncodingSettings(
        frozenset(inspect.signature(model.forward).parameters),
        settings.length or example_length(model, tokenizer),
        settings.examples,
        settings.tokens,
        model.config.get_text_config().pad_token_id,
    )
    check_length(model, encoding.length)
    if speech is None:
        rows = encode_examples(examples, tokenizer, encoding, settings.data)
    else:
        rows = encode_speech(examples, tokenizer, encoding, speech, settings.data)
    embedding: Any = model.get_input_embeddings()
    check_ids(rows, embedding.num_embeddings)
    return rows


def calibration_examples(
    model: PreTrainedModel, tokenizer: Any, given: CalibrationRecipe
) -> LabeledRows:
    """Return the examples of a recipe; by default as many as a calibration needs tokens."""
    tokens = None if given.sequences else default_sequences(model, 1)
    data = given.data or DEFAULT_TEXT
    settings = ExampleSettings(
        data, given.field, given.length, given.sequences, tokens, given.seed
    )
    return labeled_rows(model, tokenizer, settings)


def speech_of(processor: Any, config: Mapping[str, Any], data: str) -> Speech:
    """Return what a model of speech reads. Raises InputError where that is not known."""
    extractor, positions = (
        getattr(processor, "feature_extractor", None),
        config.get("max_source_positions"),
    )
    if extractor is None or not positions:
        raise InputError(
            "a model of speech needs its processor in place of a tokenizer, with "
            "preprocessor_config.json beside the model, and max_source_positions in "
            "config.json, as Whisper has; in Python "
            "spectrim.compress_any(model, batches, loss) compresses others"
        )
    specs = [Path(part.spec).expanduser() for part in split_spec(data)]
    beside = [spec if spec.is_dir() else spec.parent for spec in specs]
    start = config.get("decoder_start_token_id")
    return Speech(extractor, int(positions), start, (*dict.fromkeys([*beside, Path()]),))


def check_recording(processor: Any, config: Mapping[str, Any], data: str, field: Any) -> None:
    """Raise InputError for a first recording that cannot be read, or made features of."""
    speech = speech_of(processor, config, data)
    example = next(iter(read_examples(data, labels_for(SPEECH, config), field)))
    speech.features(speech.samples(example.text))


def example_length(model: PreTrainedModel, tokenizer: Any) -> int:
    """Return the most tokens that model and tokenizer take, at most `LONGEST`."""
    own = tokenizer.model_max_length or LONGEST
    return int(min(LONGEST, context_length(model) or LONGEST, own))


def labels_for(kind: ModelKind, config: Mapping[str, Any]) -> Labels:
    """Return what a model's labels are, by its config.

    Raises ModelError for a classifier that gives several labels to one text.
    """
    if kind is SPEECH:
        return Transcripts()
    if kind is SEQ2SEQ:
        return TargetTexts()
    problem, names = config.get("problem_type"), _names(config)
    if problem == _SEVERAL:
        raise ModelError(
            "the model gives several labels to one text (problem_type of its config.json), "
            "which examples with one label cannot show; in Python "
            "spectrim.compress_any(model, batches, loss) compresses it for a loss of its own"
        )
    if problem == "regression" or (problem is None and len(names) == 1):
        if len(names) > 1:
            raise ModelError(f"a regression with {len(names)} outputs cannot be read as scores")
        return Scores()
    return ClassLabels({name: number for number, name in names.items()}, len(names))


def _names(config: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of the outputs by number, two where the config has none."""
    named = config.get("id2label")
    if not isinstance(named, Mapping) or not named:
        count = config.get("num_labels") or 2
        return {number: f"LABEL_{number}" for number in range(count)}
    try:
        return {int(number): str(name) for number, name in named.items()}
    except ValueError as error:
        raise InputError(
            f"id2label in config.json has a number that is none: {error}"
        ) from error
