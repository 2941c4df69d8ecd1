"""Each source gives its documents, and each bad input its own clear error."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.data import SOURCES, load_documents, python_sources
from spectrim.data.conversation import Conversation
from spectrim.data.loading import first_documents, open_documents, split_spec
from spectrim.data.sources import files, jsonl
from spectrim.data.sources import text as plain
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


def test_every_source_says_what_to_type() -> None:
    assert SOURCES.names() == ["files", "hub", "jsonl", "parquet", "python", "text"]
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
        with pytest.raises(InputError, match=r"not UTF-8 text \(it has a byte 0xff\)"):
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
            ("[" * 100_000, "line 2 is not JSON"),
        ],
        ids=["broken", "list", "missing", "number", "deep"],
    )
    def test_bad_line(self, tmp_path: Path, second_line: str, message: str) -> None:
        spec = write(tmp_path / "a.jsonl", '{"text": "a"}\n' + second_line)
        with pytest.raises(InputError, match=message):
            load_documents(spec)

    def test_bytes_that_are_not_text(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not UTF-8"):
            load_documents(write(tmp_path / "a.jsonl", b'{"text": "\xff"}'))

    def test_one_array(self, tmp_path: Path) -> None:
        spec = write(tmp_path / "a.json", '\n [{"text": "one"},\n{"text": "two"}]\n')
        assert load_documents(spec) == ["one", "two"]

    def test_array_with_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="item 2 is a JSON int; expected an object"):
            load_documents(write(tmp_path / "a.json", '[{"text": "one"}, 3]'))

    def test_null_is_no_document(self, tmp_path: Path) -> None:
        spec = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": null}\n{"text": "b"}')
        assert load_documents(spec) == ["a", "b"]
        assert list(open_documents(spec)) == ["a", None, "b"]

    def test_only_nulls(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no text"):
            load_documents(write(tmp_path / "a.jsonl", '{"text": null}'))


class TestCompressed:
    @pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz:text", "a.JSON.GZ"])
    def test_gzip(self, tmp_path: Path, name: str) -> None:
        path = name.partition(":")[0]
        content = "one" if ".txt" in name else '{"text": "one"}\n'
        write(tmp_path / path, gzip.compress(content.encode()))
        assert load_documents(str(tmp_path / name)) == ["one"]

    @pytest.mark.parametrize("name", ["a.txt.zst", "a.jsonl.zst"])
    def test_zstd(self, tmp_path: Path, name: str) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        content = "one" if ".txt" in name else '{"text": "one"}\n{"text": "two"}'
        with pyarrow.output_stream(str(tmp_path / name), compression="zstd") as stream:
            stream.write(content.encode())
        assert load_documents(str(tmp_path / name))[0] == "one"

    @pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz"])
    def test_not_compressed_at_all(self, tmp_path: Path, name: str) -> None:
        pytest.importorskip("pyarrow")
        with pytest.raises(InputError, match="cannot be read"):
            load_documents(write(tmp_path / name, '{"text": "one"}'))

    def test_cut_short(self, tmp_path: Path) -> None:
        whole = gzip.compress(json.dumps({"text": "one " * 500}).encode())
        with pytest.raises(InputError, match="cannot be read"):
            load_documents(write(tmp_path / "a.jsonl.gz", whole[:-9]))


class TestConversations:
    CHAT = (
        ("messages", {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}),
        ("conversations", {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}),
        (
            "messages",
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Ho", "tool_calls": None},
        ),
    )

    @pytest.mark.parametrize("chat", CHAT, ids=["messages", "conversations", "parts"])
    @pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
    def test_known_fields(self, tmp_path: Path, chat: tuple, suffix: str) -> None:
        field, *messages = chat
        path = tmp_path / f"a.{suffix}"
        if suffix == "jsonl":
            write(path, json.dumps({field: messages, "id": 1}))
        else:
            if isinstance(messages[0].get("content"), list):
                pytest.skip("a column has one type")
            pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
            parquet.write_table(pyarrow.table({field: [messages], "id": [1]}), path)
        (found,) = load_documents(str(path))
        assert isinstance(found, Conversation)
        assert found.messages == (
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
        )

    @pytest.mark.parametrize(
        ("messages", "error"),
        [
            ("[]", "line 1: the conversation has no message"),
            ('[{"role": "user"}]', "message 1 has .'role'., expected role and content"),
            ('["Hi"]', "message 1 has str"),
            ('[{"role": 3, "content": "Hi"}]', "the role is int, expected a string"),
        ],
    )
    def test_unusable(self, tmp_path: Path, messages: str, error: str) -> None:
        with pytest.raises(InputError, match=error):
            load_documents(write(tmp_path / "a.jsonl", f'{{"messages": {messages}}}'))

    @pytest.mark.parametrize(
        ("record", "messages"),
        [
            ({"messages": json.dumps([{"role": "user", "content": "Hi"}])}, ["Hi"]),
            ({"messages": [{"role": "user", "content": ["Hi", {"text": " you"}]}]}, ["Hi you"]),
            (
                {
                    "messages": [
                        {"role": "assistant", "tool_calls": [{"id": 1}]},
                        {"role": "tool", "content": "3"},
                    ]
                },
                ["", "3"],
            ),
            ({"text": None, "messages": [{"role": "user", "content": "Hi"}]}, ["Hi"]),
        ],
        ids=["a string of JSON", "parts of strings", "tools", "beside a null"],
    )
    def test_other_layouts(self, tmp_path: Path, record: dict, messages: list[str]) -> None:
        (found,) = load_documents(write(tmp_path / "a.jsonl", json.dumps(record)))
        assert isinstance(found, Conversation)
        assert [message["content"] for message in found.messages] == messages

    @pytest.mark.parametrize("content", [5, {"text": "Hi"}, [["Hi", 3]]])
    def test_content_that_is_no_text(self, tmp_path: Path, content: Any) -> None:
        row = json.dumps({"messages": [{"role": "user", "content": content}]})
        with pytest.raises(
            InputError, match=r"message 1: the content is \w+, expected a string"
        ):
            load_documents(write(tmp_path / "a.jsonl", row))


class TestTheBeginning:
    """What is read of a text before a model is."""

    def test_is_short(self, tmp_path: Path) -> None:
        rows = "\n".join(json.dumps({"text": f"row {n}"}) for n in range(2000))
        spec = write(tmp_path / "a.jsonl", f"{rows}\nbroken")
        assert first_documents(spec) == [f"row {n}" for n in range(1000)]
        assert first_documents(write(tmp_path / "a.txt", "a" * 3 * 2**20))[0] == "a" * 2**20
        assert first_documents("python") == []

    def test_of_a_directory_is_that_of_the_first_file_with_text(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", " ")
        write(tmp_path / "b.jsonl", '{"text": "one"}')
        write(tmp_path / "c.jsonl", "broken")
        assert first_documents(str(tmp_path)) == ["one"]

    def test_of_a_parquet_file(self, tmp_path: Path) -> None:
        pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
        table = pyarrow.table({"text": [str(n) for n in range(1500)]})
        parquet.write_table(table, tmp_path / "a.parquet")
        assert len(first_documents(str(tmp_path / "a.parquet"))) == 1000
        with pytest.raises(InputError, match="has no column 'q'"):
            first_documents(f"{tmp_path / 'a.parquet'}:q")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", " \n", "holds no text"),
            ("a.jsonl", '{"text": null}', "holds no text"),
            ("a.jsonl", '{"body": "b"}', "its fields: body; name the one to read"),
            ("a.jsonl", '{"text": ["b"]}', "field 'text' is list, expected a string"),
            ("a.txt", "caf\xe9".encode("latin-1"), "it has a byte 0xe9.; convert it, .* iconv"),
            ("a.txt", "one".encode("utf-16"), "it has a byte 0xff"),
            ("a.jsonl", gzip.compress(b"{}"), "rename it to a.jsonl.gz"),
            ("a.txt", b"\x28\xb5\x2f\xfd\x00", "rename it to a.txt.zst"),
        ],
    )
    def test_that_cannot_be_read(
        self, tmp_path: Path, name: str, content: str | bytes, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            first_documents(write(tmp_path / name, content))

    def test_of_what_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").symlink_to("/dev/null")
        with pytest.raises(InputError, match="is no regular file"):
            first_documents(str(tmp_path / "a.txt"))


class TestSeveralFiles:
    @pytest.fixture
    def corpus(self, tmp_path: Path) -> Path:
        (tmp_path / "corpus/below").mkdir(parents=True)
        write(tmp_path / "corpus/b.jsonl", '{"text": "two", "q": "three"}')
        write(tmp_path / "corpus/a.txt", "one")
        write(
            tmp_path / "corpus/below/c.jsonl.gz", gzip.compress(b'{"text": "four", "q": "5"}')
        )
        write(tmp_path / "corpus/.hidden.txt", "no")
        write(tmp_path / "corpus/picture.png", "no")
        return tmp_path / "corpus"

    def test_directory_in_order_of_the_paths(self, corpus: Path) -> None:
        assert load_documents(str(corpus)) == ["one", "two", "four"]

    def test_pattern_with_field(self, corpus: Path) -> None:
        assert load_documents(f"{corpus}/*.jsonl:q") == ["three"]
        assert load_documents(f"{corpus}/**/*.jsonl*", "q") == ["three", "5"]

    def test_pattern_without_file(self, corpus: Path) -> None:
        with pytest.raises(InputError, match="holds no file of text"):
            load_documents(f"{corpus}/*.parquet")

    def test_a_file_whose_name_looks_like_a_pattern(self, tmp_path: Path) -> None:
        assert load_documents(write(tmp_path / "a[1].txt", "one")) == ["one"]

    def test_more_than_fits_is_streamed(
        self, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert isinstance(open_documents(str(corpus)), list)
        monkeypatch.setattr(files, "MOST_BYTES_AT_ONCE", 3)
        stream = open_documents(str(corpus))
        write(corpus / "b.jsonl", "broken")
        assert not isinstance(stream, list)
        assert next(iter(stream)) == "one"


class TestSpecsOfSeveralTexts:
    def test_shares(self) -> None:
        assert split_spec("a.txt@0.7 + b.jsonl:q@3") == [("a.txt", 0.7), ("b.jsonl:q", 3.0)]
        assert split_spec("a.txt + python") == [("a.txt", None), ("python", None)]
        assert split_spec("me@work.txt") == [("me@work.txt", None)]

    def test_files_with_such_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "a + b.txt", "one")
        write(tmp_path / "c.txt@2", "")
        assert load_documents("a + b.txt") == ["one"]
        assert split_spec("c.txt@2") == [("c.txt@2", None)]

    def test_share_of_nothing(self) -> None:
        with pytest.raises(InputError, match=r"the share is 0\.0, expected more than 0"):
            split_spec("a.txt@0.0")

    def test_all_documents(self, tmp_path: Path) -> None:
        specs = [write(tmp_path / f"{n}.txt", n) for n in ("one", "two")]
        assert load_documents(" + ".join(specs)) == ["one", "two"]


class TestPython:
    @pytest.mark.slow
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
    def test_directory_without_text(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        write(tmp_path / name / "picture.png", "x")
        with pytest.raises(InputError, match="holds no file of text; expected some of: PATH"):
            load_documents(str(tmp_path / name))

    def test_file_for_a_task_that_is_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is a directory"):
            list(jsonl.records(str(tmp_path)))

    @unhurried
    @given(spec=texts)
    def test_anything_else_lists_the_forms(self, spec: str) -> None:
        if any(SOURCES.get(name).matches(spec) for name in SOURCES.names()):
            return
        with pytest.raises(InputError, match=r"expected one of: .*PATH.jsonl|the share is"):
            load_documents(spec)


def test_a_large_text_is_read_as_it_is_needed(tmp_path, monkeypatch):
    """The same documents, without the whole file in memory; long ones are cut between words."""
    path = tmp_path / "large.txt"
    documents = [f"document {number} " + "word " * number for number in range(300)]
    path.write_text(plain.SEPARATOR.join(documents))
    whole = plain.documents(str(path), None)
    assert isinstance(whole, list)
    monkeypatch.setattr(plain, "MOST_BYTES_AT_ONCE", 1000)
    monkeypatch.setattr(plain, "_CHUNK", 37)
    streamed = plain.documents(str(path), None)
    assert not isinstance(streamed, list)
    assert list(streamed) == whole
    monkeypatch.setattr(plain, "LONGEST_PART", 100)
    parts = list(plain.documents(str(path), None))
    assert max(map(len, parts)) < 200
    assert " ".join(parts).split() == " ".join(whole).split()
