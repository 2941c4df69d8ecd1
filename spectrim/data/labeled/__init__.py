"""Examples with labels: records of a text and its target, class or score, as padded rows."""

from spectrim.data.labeled.encoding import EncodingSettings, check_ids, encode_examples
from spectrim.data.labeled.labels import (
    ClassLabels,
    Labels,
    Scores,
    TargetTexts,
    Transcripts,
)
from spectrim.data.labeled.reading import Example, check_examples, read_examples
from spectrim.data.labeled.rows import IGNORED, LabeledRows
from spectrim.data.labeled.speech import Speech, encode_speech

__all__ = [
    "IGNORED",
    "ClassLabels",
    "EncodingSettings",
    "Example",
    "LabeledRows",
    "Labels",
    "Scores",
    "Speech",
    "TargetTexts",
    "Transcripts",
    "check_examples",
    "check_ids",
    "encode_examples",
    "encode_speech",
    "read_examples",
]
