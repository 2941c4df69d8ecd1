"""Sources that need a package of their own: Parquet by pyarrow, the hub by datasets."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from spectrim.data import load_documents
from spectrim.data.sources import hub
from spectrim.errors import InputError


def refuse(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: object, **named: object) -> object:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named '{name}'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refusing)


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

    def test_null(self, spec: str) -> None:
        assert load_documents(f"{spec}:body") == ["b", "c"]

    def test_column(self, spec: str) -> None:
        assert load_documents(spec) == ["one", "two"]

    @pytest.mark.parametrize(
        ("field", "message"),
        [
            ("title", "no column 'title'; its columns: body, n, text"),
            ("n", "row 1: field 'n' is int"),
        ],
    )
    def test_bad_column(self, spec: str, field: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_documents(f"{spec}:{field}")

    def test_not_parquet(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        (tmp_path / "a.parquet").write_text("text")
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            load_documents(str(tmp_path / "a.parquet"))

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
        with pytest.raises(InputError, match="cannot read split 'train' of the dataset 'a/b'"):
            load_documents("hf:a/b:train")

    def test_without_datasets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse(monkeypatch, "datasets")
        with pytest.raises(InputError, match=r"pip install 'spectrim\[data\]'"):
            load_documents("hf:a/b:train")
