"""Each source gives its documents, and each bad input its own clear error."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.data import SOURCES, load_documents, python_sources
from spectrim.data.sources import hub
from spectrim.errors import InputError

texts = st.text(st.characters(exclude_categories=["Cs"]))
unhurried = settings(deadline=None)  # machines are shared


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def stripped(documents: list[str]) -> list[str]:
    return [text.strip() for text in documents if text.strip()]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refuse(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: object, **named: object) -> object:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named '{name}'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refusing)


def test_every_source_says_what_to_type() -> None:
    assert SOURCES.names() == ["hub", "jsonl", "parquet", "python", "text"]
    for name in SOURCES.names():
        assert SOURCES.get(name).FORM
        assert SOURCES.summary(name)


class TestText:
    def test_separator_splits_and_empty_documents_go(self, tmp_path: Path) -> None:
        spec = write(tmp_path / "a.txt", "\n one \n<|endoftext|>\n \n<|endoftext|>two\n")
        assert load_documents(spec) == ["one", "two"]

    def test_without_separator_the_file_is_one_document(self, tmp_path: Path) -> None:
        assert load_documents(write(tmp_path / "a.txt", "\ufeffa\n\nb\n")) == ["a\n\nb"]

    def test_other_suffixes_of_plain_text(self, tmp_path: Path) -> None:
        assert load_documents(write(tmp_path / "wiki.test.RAW", "x")) == ["x"]

    @pytest.mark.parametrize("content", ["", " \n\t ", "<|endoftext|>\n<|endoftext|>"])
    def test_no_text_at_all(self, tmp_path: Path, content: str) -> None:
        with pytest.raises(InputError, match="holds no text: every document is empty"):
            load_documents(write(tmp_path / "a.txt", content))

    def test_bytes_that_are_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"not UTF-8 text \(byte 2\)"):
            load_documents(write(tmp_path / "a.txt", b"ab\xff"))

    def test_a_field_makes_no_sense(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no field 'body'"):
            load_documents(write(tmp_path / "a.txt", "x"), "body")


class TestJsonLines:
    @unhurried
    @given(documents=st.lists(texts, min_size=1), ascii_only=st.booleans())
    def test_any_text_comes_back(
        self, scratch: Path, documents: list[str], ascii_only: bool
    ) -> None:
        lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in documents]
        spec = write(scratch / "a.jsonl", "\n".join(lines))
        if stripped(documents):
            assert load_documents(spec) == stripped(documents)
        else:
            with pytest.raises(InputError, match="holds no text"):
                load_documents(spec)

    def test_field_by_option_and_by_spec(self, tmp_path: Path) -> None:
        spec = write(tmp_path / "a.json", '{"q": "one", "a": "two"}\n\n{"q": "1", "a": "2"}')
        assert load_documents(spec, "q") == ["one", "1"]
        assert load_documents(f"{spec}:a") == ["two", "2"]

    @pytest.mark.parametrize(
        ("second_line", "message"),
        [
            ('{"text": "b"', "line 2 is not JSON"),
            ('["b"]', "line 2 is a JSON list; expected one object per line"),
            ('{"body": "b", "id": 1}', "line 2 has no field 'text'; its fields: body, id"),
            ('{"text": 3}', "line 2: field 'text' is int, expected a string"),
            ('{"text": null}', "line 2: field 'text' is NoneType, expected a string"),
            ("[" * 100_000, "line 2 is not JSON"),
        ],
        ids=["broken", "list", "missing", "number", "null", "deep"],
    )
    def test_bad_line(self, tmp_path: Path, second_line: str, message: str) -> None:
        spec = write(tmp_path / "a.jsonl", '{"text": "a"}\n' + second_line)
        with pytest.raises(InputError, match=message):
            load_documents(spec)

    def test_bytes_that_are_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not UTF-8"):
            load_documents(write(tmp_path / "a.jsonl", b'{"text": "\xff"}'))


class TestParquet:
    @pytest.fixture
    def spec(self, tmp_path: Path) -> str:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table(
            {"text": ["one", " ", "two"], "body": ["b", "c", None], "n": [1, 2, 3]}
        )
        parquet.write_table(table, tmp_path / "a.parquet")
        return str(tmp_path / "a.parquet")

    def test_column(self, spec: str) -> None:
        assert load_documents(spec) == ["one", "two"]

    @pytest.mark.parametrize(
        ("field", "message"),
        [
            ("title", "no column 'title'; its columns: body, n, text"),
            ("body", "row 3: field 'body' is NoneType"),
            ("n", "row 1: field 'n' is int"),
        ],
    )
    def test_bad_column(self, spec: str, field: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_documents(f"{spec}:{field}")

    def test_not_parquet(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            load_documents(write(tmp_path / "a.parquet", "text"))

    def test_without_pyarrow(self, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse(monkeypatch, "pyarrow")
        with pytest.raises(InputError, match=r"pip install 'spectrim\[data\]'"):
            load_documents(spec)


class TestHub:
    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("hf:gsm8k:test", ("gsm8k", None, "test", None)),
            ("hf:openai/gsm8k:test:question", ("openai/gsm8k", None, "test", "question")),
            ("hf:allenai/c4/en:train", ("allenai/c4", "en", "train", None)),
        ],
    )
    def test_spec(self, spec: str, expected: tuple[str | None, ...]) -> None:
        assert hub.parse(spec) == expected

    @pytest.mark.parametrize("spec", ["hf:", "hf:c4", "hf:a/b/c/d:train", "hf::train"])
    def test_bad_spec(self, spec: str) -> None:
        with pytest.raises(InputError, match=r"expected hf:NAME\[/CONFIG\]:SPLIT"):
            load_documents(spec)

    def test_rows_stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        asked: list[object] = []

        def rows(*names: object, **options: object) -> list[dict[str, str]]:
            asked.append((names, options))
            return [{"text": " a "}, {"text": ""}, {"text": "b"}, {"body": "c"}]

        monkeypatch.setattr(datasets, "load_dataset", rows)
        stream = iter(hub.documents("hf:allenai/c4/en:train", None))
        assert [next(stream), next(stream)] == ["a", "b"]
        assert asked == [(("allenai/c4", "en"), {"split": "train", "streaming": True})]
        with pytest.raises(InputError, match="'allenai/c4/en' row 4 has no field 'text'"):
            next(stream)

    def test_not_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="cannot read split 'train' of the data set 'a/b'"):
            load_documents("hf:a/b:train")

    def test_without_datasets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse(monkeypatch, "datasets")
        with pytest.raises(InputError, match=r"pip install 'spectrim\[data\]'"):
            load_documents("hf:a/b:train")


class TestPython:
    def test_splits_are_disjoint_and_the_plain_name_is_train(self) -> None:
        files = [set(python_sources.source_files(split)) for split in python_sources.SPLITS]
        assert not files[0] & files[1]
        assert load_documents("python:held_out") == python_sources.documents("held_out")
        assert load_documents("python") == python_sources.documents("train")

    def test_bad_split_or_field(self) -> None:
        with pytest.raises(InputError, match=r"no split 'test'.*splits: train, held_out"):
            load_documents("python:test")
        with pytest.raises(InputError, match="no field 'text'"):
            load_documents("python", "text")


class TestUnusableSpecs:
    @pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "parquet"])
    def test_missing_file(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(InputError, match="no such file"):
            load_documents(str(tmp_path / f"absent.{suffix}"))

    @pytest.mark.parametrize("name", ["texts", "texts.txt", "texts.jsonl", "texts.parquet"])
    def test_directory(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match="is a directory; give one file"):
            load_documents(str(tmp_path / name))

    @unhurried
    @given(spec=texts)
    def test_anything_else_lists_the_forms(self, spec: str) -> None:
        if any(SOURCES.get(name).matches(spec) for name in SOURCES.names()):
            return
        with pytest.raises(InputError, match=r"expected one of: .*PATH.jsonl|is a directory"):
            load_documents(spec)
