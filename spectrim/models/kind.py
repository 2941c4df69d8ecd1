"""Tell from a configuration or a model how its loss is made, and which class loads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class ModelKind:
    """A kind of model whose loss is known.

    Attributes:
        name: in messages and provenance.
        loader: the class of transformers that loads it.
        tag: the Hub's name of what it does.
        unit: what a loss is an average over.
        labeled: whether its loss needs examples with labels.
        predicts: what it predicts one of for each loss.
    """

    name: str
    loader: str
    tag: str
    unit: str = "token"
    labeled: bool = False
    predicts: str = "next token"

    @property
    def units(self) -> str:
        return f"nats per {self.unit}"

    @property
    def of_tokens(self) -> bool:
        """Return whether exp(loss) is a perplexity."""
        return self.unit.endswith("token")


CAUSAL = ModelKind("causal language model", "AutoModelForCausalLM", "text-generation")
SEQ2SEQ = ModelKind(
    "encoder-decoder", "AutoModelForSeq2SeqLM", "text2text-generation", "target token", True
)
CLASSIFIER = ModelKind(
    "sequence classifier",
    "AutoModelForSequenceClassification",
    "text-classification",
    "example",
    True,
    "label",
)
IMAGE_TEXT = ModelKind(
    "vision-language model", "AutoModelForImageTextToText", "image-text-to-text"
)
SPEECH = ModelKind(
    "speech recognizer",
    "AutoModelForSpeechSeq2Seq",
    "automatic-speech-recognition",
    "target token",
    True,
)
KINDS = {kind.name: kind for kind in (CAUSAL, SEQ2SEQ, CLASSIFIER, IMAGE_TEXT, SPEECH)}
_SPEECH_INPUT = "input_features"


def kind_of_config(config: Mapping[str, Any]) -> ModelKind | None:
    """Return the kind of a checkpoint by its config.json; None where no loss is known.

    What names no class is taken as a causal language model, which its loading then shows.
    """
    name = class_name(config)
    if name.endswith(_CLASSIFIER):
        return CLASSIFIER
    if config.get("is_encoder_decoder") is not True:
        return IMAGE_TEXT if _reads_images(name) else CAUSAL
    kinds = {
        SPEECH: _auto().MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        SEQ2SEQ: _auto().MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    for kind, classes in kinds.items():
        expected = classes.get(str(config.get("model_type")))
        if expected is not None and name in ("", expected):
            return kind
    return None


def kind_of(model: nn.Module) -> ModelKind:
    """Return the kind of a model in memory; what is none of the others is taken as causal."""
    config: Any = getattr(model, "config", None)
    if type(model).__name__.endswith(_CLASSIFIER):
        return CLASSIFIER
    encodes = getattr(config, "is_encoder_decoder", False) is True
    reads = getattr(model, "main_input_name", "")
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if encodes and head is not None and reads in ("input_ids", _SPEECH_INPUT):
        return SPEECH if reads == _SPEECH_INPUT else SEQ2SEQ
    return IMAGE_TEXT if not encodes and _reads_images(type(model).__name__) else CAUSAL


def _reads_images(name: str) -> bool:
    """Return whether a class is one of images and text, which no causal loader takes."""
    causal = _auto().MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    both = _auto().MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    return _listed_in(name, both) and not _listed_in(name, causal)


def _auto() -> Any:
    """Return transformers' tables of classes; recipes need the kinds without importing it."""
    from transformers.models.auto import modeling_auto

    return modeling_auto


def _listed_in(name: str, classes: Iterable[Any]) -> bool:
    return any(name in (entry if isinstance(entry, tuple) else (entry,)) for entry in classes)


def kind_named(provenance: Mapping[str, Any]) -> ModelKind:
    """Return the kind that a calibration's or plan's provenance names."""
    return KINDS.get(str(provenance.get("kind")), CAUSAL)


def class_name(config: Mapping[str, Any]) -> str:
    """Return the class that a config.json names, or ""."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    return first if isinstance(first, str) else ""
