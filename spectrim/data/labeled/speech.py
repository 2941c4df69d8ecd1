"""Encode recordings and what is said in them: features of one length, and target tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrim.data.labeled.audio import Samples, read_audio
from spectrim.data.labeled.encoding import (
    Encoded,
    EncodingSettings,
    ExampleEncoder,
    encode_by,
)
from spectrim.data.labeled.reading import Example, Examples
from spectrim.data.labeled.rows import MASK, LabeledRows
from spectrim.errors import InputError

FEATURES = "input_features"


@dataclass(frozen=True)
class Speech:
    """What a model of speech reads.

    Attributes:
        extractor: of features, which pads and cuts every recording to one length.
        positions: of the encoder.
        start: the token that a decoder begins with, which targets do not hold.
        places: directories that names of files are relative to.
    """

    extractor: Any
    positions: int
    start: int | None
    places: tuple[Path, ...] = ()

    def samples(self, recording: Any) -> Samples:
        return read_audio(recording, self.places, self.extractor.sampling_rate)

    def features(self, samples: Samples) -> Tensor:
        """Return the features (channels, frames). Raises InputError for other extractors."""
        rate = self.extractor.sampling_rate
        found = self.extractor(samples, sampling_rate=rate, return_tensors="pt")
        features: Tensor | None = found.get(FEATURES)
        if features is None or features.shape[-1] % self.positions:
            got = {name: tuple(values.shape) for name, values in found.items()}
            raise InputError(
                f"the feature extractor gives {got}, expected {FEATURES} for an encoder of "
                f"{self.positions} positions, as Whisper's; in Python "
                "spectrim.compress_any(model, batches, loss) compresses other models of speech"
            )
        return features[0]


def encode_speech(
    examples: Examples, tokenizer: Any, settings: EncodingSettings, speech: Speech, source: str
) -> LabeledRows:
    """Return the rows of as many recordings as the settings ask for; tokens are of targets.

    Warns (UserWarning) as `encode_examples`, and of recordings that are longer than the model
    reads. Raises InputError for what is no recording.
    """
    encoder = _SpeechEncoder(tokenizer, settings, speech)
    rows = encode_by(encoder, examples, source)
    if encoder.long:
        warnings.warn(
            f"'{source}': {encoder.long} of {len(rows)} recordings are longer than the model "
            f"reads, and cut to {speech.extractor.chunk_length} s",
            stacklevel=3,
        )
    return rows


class _SpeechEncoder(ExampleEncoder):
    AT_ONCE = 16

    def __init__(self, tokenizer: Any, settings: EncodingSettings, speech: Speech):
        super().__init__(tokenizer, settings)
        self._speech, self.long = speech, 0

    def add(self, encoded: Encoded, examples: Sequence[Example]) -> None:
        longest = getattr(self._speech.extractor, "n_samples", None)
        for example in examples:
            samples = self._speech.samples(example.text)
            self.long += longest is not None and len(samples) > longest
            mask = torch.ones(self._speech.positions, dtype=torch.long)
            encoded.inputs.append({FEATURES: self._speech.features(samples), MASK: mask})
        self.add_labels(encoded, [example.label for example in examples])

    def add_labels(self, encoded: Encoded, labels: list[Any]) -> None:
        before = len(encoded.labels)
        super().add_labels(encoded, labels)
        for row in encoded.labels[before:]:
            if row[:1] == [self._speech.start]:
                del row[0]
            encoded.tokens += len(row)

    def padded(self, encoded: Encoded) -> dict[str, Tensor]:
        names = encoded.inputs[0]
        return {name: torch.stack([row[name] for row in encoded.inputs]) for name in names}
