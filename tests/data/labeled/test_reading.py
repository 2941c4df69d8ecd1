"""Examples from records: their fields, what is skipped and said, and what is refused."""

from __future__ import annotations

import gzip
import json

import pytest

from spectrim.data.labeled import (
    ClassLabels,
    EncodingSettings,
    Scores,
    TargetTexts,
    check_examples,
    encode_examples,
    read_examples,
)
from spectrim.errors import InputError
from tests.tiny_models import tiny_tokenizer

CLASSES = ClassLabels({"bad": 0, "fair": 1, "good": 2}, 3)
TARGETS = TargetTexts()
SETTINGS = EncodingSettings(frozenset({"input_ids", "attention_mask"}), 16, padding=2)


def write(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def read(spec, labels, named=None):
    return [(e.text, e.second, e.label) for e in read_examples(spec, labels, named)]


@pytest.mark.parametrize(
    ("record", "text", "target"),
    [
        ({"source": "a", "target": "b"}, "a", "b"),
        ({"input": "a", "output": "b", "id": 3}, "a", "b"),
        ({"document": "a", "summary": "b"}, "a", "b"),
        ({"text": "a", "summary": "b"}, "a", "b"),
        ({"article": " a ", "highlights": "b"}, "a", "b"),
        ({"question": "a", "answer": "b"}, "a", "b"),
        ({"translation": {"en": "a", "de": "b"}}, "a", "b"),
    ],
)
def test_usual_names_of_targets(tmp_path, record, text, target):
    spec = write(tmp_path / "pairs.jsonl", record)
    assert read(spec, TARGETS) == [(text, None, target)]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "a", "label": 1}, ("a", None, 1)),
        ({"text": "a", "text_pair": "b", "label": 0}, ("a", "b", 0)),
        ({"premise": "a", "hypothesis": "b", "label": "good"}, ("a", "b", 2)),
        ({"sentence": "a", "labels": True}, ("a", None, 1)),
    ],
)
def test_usual_names_of_texts(tmp_path, record, expected):
    assert read(write(tmp_path / "rows.jsonl", record), CLASSES) == [expected]


def test_fields_are_named_by_option_or_after_the_file(tmp_path):
    record = {"text": "x", "meta": {"long": "a", "short": "b"}, "stars": 2}
    spec = write(tmp_path / "rows.jsonl", record)
    assert read(spec, TARGETS, "meta.long,meta.short") == [("a", None, "b")]
    assert read(f"{spec}:text,stars", CLASSES) == [("x", None, 2)]
    assert read(f"{spec}:text,stars", Scores()) == [("x", None, 2.0)]


def test_compressed_files_arrays_parquet_and_directories(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 2}]
    lines = "\n".join(map(json.dumps, rows))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    expected = [("a", None, 0), ("b", None, 2)]
    for name in ("a.jsonl.gz", "b.json"):
        assert read(str(tmp_path / name), CLASSES) == expected
    assert read(str(tmp_path), CLASSES) == 2 * expected
    assert read(f"{tmp_path}/a.jsonl.gz + {tmp_path}/b.json", CLASSES) == 2 * expected
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "c.parquet")
    assert read(f"{tmp_path}/c.parquet:text,label", CLASSES) == expected


REFUSED = {
    "no known field": ({"title": "a", "body": "b"}, TARGETS, None, "--field SOURCE,TARGET"),
    "no label": ({"text": "a"}, CLASSES, None, "cannot tell text and label"),
    "a field that is not there": ({"a": "x"}, TARGETS, "a,b", "no field 'b'; its fields: a"),
    "one field": ({"a": "x"}, TARGETS, "a", "names 1 fields, expected SOURCE,TARGET"),
    "a number for a target": ({"source": "a", "target": 3}, TARGETS, None, "is int, expected"),
    "a list for a text": ({"text": ["a"], "label": 0}, CLASSES, None, "is list, expected"),
    "beyond the classes": ({"text": "a", "label": 3}, CLASSES, None, "classes 0 to 2"),
    "below the classes": ({"text": "a", "label": -1}, CLASSES, None, "the label is -1"),
    "an unknown name": ({"text": "a", "label": "goood"}, CLASSES, None, "did you mean 'good'"),
    "a fraction for a class": (
        {"text": "a", "label": 0.5},
        CLASSES,
        None,
        "is float, expected",
    ),
    "a name for a score": ({"text": "a", "label": "b"}, Scores(), None, "a number to regress"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_example_is_named_with_its_line(tmp_path, case):
    record, labels, named, message = REFUSED[case]
    good = {"source": "a", "target": "b", "text": "a", "label": 0, "a": "x"}
    spec = write(tmp_path / "rows.jsonl", record, good)
    with pytest.raises(InputError) as raised:
        check_examples(spec, labels, named)
    assert message in str(raised.value)
    assert "line 1" in str(raised.value) or "--field a names" in str(raised.value)


def test_text_and_shares_are_refused(tmp_path):
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(InputError, match="text without fields; examples with labels need"):
        check_examples(str(tmp_path / "text.txt"), CLASSES)
    spec = write(tmp_path / "rows.jsonl", {"text": "a", "label": 0})
    with pytest.raises(InputError, match="shares"):
        check_examples(f"{spec}@0.5 + {spec}@0.5", CLASSES)
    with pytest.raises(InputError, match="no such file"):
        check_examples(str(tmp_path / "none.jsonl"), CLASSES)


def test_null_and_empty_records_are_skipped_and_counted(tmp_path):
    spec = write(
        tmp_path / "rows.jsonl",
        {"source": None, "target": "b"},
        {"source": "a", "target": None},
        {"source": "a", "target": "b"},
        {"source": " ", "target": "b"},
    )
    with pytest.warns(
        UserWarning, match="skipped 3 of the 4 .* 2 with a null .* 1 with an emp"
    ):
        rows = encode_examples(read_examples(spec, TARGETS), tiny_tokenizer(), SETTINGS, spec)
    assert len(rows) == 1
    assert rows.settings["null"] == 2
    nothing = write(tmp_path / "none.jsonl", {"source": None, "target": "b"})
    with pytest.raises(InputError, match=r"no example: 1 records \(1 with a null"):
        check_examples(nothing, TARGETS)
