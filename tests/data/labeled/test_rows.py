"""Encoded examples: what is cut, padded and counted, and how they lie in batches."""

from __future__ import annotations

import json

import pytest
import torch

from spectrim.data.labeled import (
    IGNORED,
    ClassLabels,
    EncodingSettings,
    TargetTexts,
    check_ids,
    encode_examples,
    read_examples,
)
from spectrim.errors import InputError
from tests.tiny_models import tiny_tokenizer

ARGUMENTS = frozenset({"input_ids", "attention_mask"})
TEXTS = ("abcdefgh", "ab", "abcdefghijklmnop", "abcd")


def encode(tmp_path, labels, key, values, **changes):
    path = tmp_path / "rows.jsonl"
    texts = zip(TEXTS, values, strict=True)
    path.write_text("\n".join(json.dumps({"text": t, key: value}) for t, value in texts))
    settings = EncodingSettings(ARGUMENTS, **{"length": 32, "padding": 2} | changes)
    return encode_examples(read_examples(str(path), labels), tiny_tokenizer(), settings, "rows")


def targets(tmp_path, **changes):
    return encode(tmp_path, TargetTexts(), "summary", ["xy", "x", "xyz", "xyzuvw"], **changes)


def test_rows_are_padded_and_ascend(tmp_path):
    rows = targets(tmp_path)
    assert rows.sizes.tolist() == sorted(rows.sizes.tolist())
    assert rows.inputs["input_ids"][0].tolist()[:3] == tiny_tokenizer()("ab")["input_ids"]
    assert rows.inputs["attention_mask"].sum() == sum(len(text) + 1 for text in TEXTS)
    assert set(rows.inputs["input_ids"][rows.inputs["attention_mask"] == 0].tolist()) == {2}
    assert (rows.labels != IGNORED).sum() == 2 + 1 + 3 + 6 + 4  # BOS of each
    assert rows.tokens == rows.inputs["attention_mask"].sum() + 16
    assert rows.fewest_tokens == 16


def test_longer_rows_are_cut_and_counted(tmp_path):
    with pytest.warns(UserWarning, match="2 inputs and 1 targets of 4 examples are cut to 6"):
        rows = targets(tmp_path, length=6)
    assert rows.inputs["input_ids"].shape == (4, 6)
    assert rows.labels.shape == (4, 6)
    assert rows.settings["cut_inputs"] == 2


def test_no_more_is_read_than_asked_for(tmp_path):
    assert len(targets(tmp_path, examples=2)) == 2
    with pytest.warns(UserWarning, match="asked for 9 examples, .* gives 4"):
        assert len(targets(tmp_path, examples=9)) == 4


def test_batches_hold_every_row_once_within_their_tokens(tmp_path):
    rows = targets(tmp_path)
    spans = list(rows.spans(24))
    assert [i for span in spans for i in range(len(rows))[span]] == list(range(len(rows)))
    assert len(spans) > 1
    assert all((s.stop - s.start) == 1 or rows.sizes[s].max() * (s.stop - s.start) <= 24
               for s in spans)  # fmt: skip
    assert list(rows.spans(24, spans[0].stop)) == spans[1:]
    alone = targets(tmp_path, padding=None)
    assert [span.stop - span.start for span in alone.spans(1000)] == [1] * 4


def test_a_batch_is_as_wide_as_its_longest_and_tells_its_sides_apart(tmp_path):
    rows = encode(tmp_path, TargetTexts(), "summary", ["zz", "xy", "z", "xyz"])
    inputs, labels = rows.cut(slice(0, 1))
    assert labels.shape[1] == 3
    assert inputs["input_ids"].shape[1] == 4, "one more than the target"
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0]]
    inputs, labels = rows.cut(slice(0, 4))
    assert inputs["input_ids"].shape[1] == 17


def test_classes_have_no_targets(tmp_path):
    rows = encode(tmp_path, ClassLabels({}, 3), "label", [0, 2, 1, 1])
    assert rows.labels.tolist() == [2, 1, 0, 1]
    assert rows.labels.dtype == torch.long
    assert rows.tokens == rows.fewest_tokens == sum(len(text) + 1 for text in TEXTS)


def test_the_fingerprint_knows_texts_and_labels(tmp_path):
    labels = ClassLabels({}, 3)
    names = {
        encode(tmp_path, labels, "label", values).fingerprint
        for values in ([0, 2, 1, 1], [0, 2, 1, 1], [0, 2, 1, 2])
    }
    assert len(names) == 2


def test_parts_are_of_all_lengths(tmp_path):
    rows = targets(tmp_path)
    assert rows.every(2).sizes.tolist() == rows.sizes[::2].tolist()
    assert len(rows.first_tokens(1)) == 1
    assert rows.first_tokens(10**6).sizes.tolist() == rows.sizes.tolist()
    half = rows.first_tokens(rows.tokens // 2)
    assert half.sizes.tolist() == [rows.sizes[0], rows.sizes[-1]]


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path):
    rows = targets(tmp_path)
    check_ids(rows, 128)
    with pytest.raises(InputError, match="beyond the model's vocabulary of 20"):
        check_ids(rows, 20)
