"""`push_to_hub` of a loaded compressed model sends what loads again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import CommitOperationAdd

from spectrim.checkpoint import (
    CardFacts,
    SaveOptions,
    attach_config,
    export_dense,
    load,
    model_card,
    save_compressed,
)
from spectrim.checkpoint.card import loading
from spectrim.checkpoint.save import save
from tests.checkpoint.compressing import compress
from tests.tiny_models import tiny_llama, tiny_tokens


class Listening:
    """What `transformers` asks of the hub, written to a directory instead."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.repositories: list[str] = []

    def create_repo(self, repo_id: str, **more: Any) -> SimpleNamespace:
        self.repositories.append(repo_id)
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, repo_id: str, operations: Any, **more: Any) -> SimpleNamespace:
        for operation in operations:
            assert isinstance(operation, CommitOperationAdd)
            target = self.directory / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                target.write_bytes(file.read())
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")


@pytest.fixture
def listening(tmp_path, monkeypatch) -> Listening:
    api = Listening(tmp_path / "hub")
    for name in ("create_repo", "create_commit"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", getattr(api, name))
        monkeypatch.setattr(f"transformers.utils.hub.{name}", getattr(api, name), raising=False)
    monkeypatch.setattr(
        "transformers.utils.hub.create_and_tag_model_card",
        lambda *given, **more: SimpleNamespace(save=lambda path: None),
        raising=False,
    )
    return api


@pytest.mark.parametrize("kind", ["pivoted", "lowrank"])
def test_what_is_sent_loads_again(kind, tmp_path, listening):
    model = tiny_llama()
    save_compressed(model, None, tmp_path / "out", compress(model, kind))
    loaded = load(tmp_path / "out", dtype=torch.float32)[0]
    loaded.push_to_hub("somebody/smaller")
    assert listening.repositories == ["somebody/smaller"]
    again = load(listening.directory, dtype=torch.float32)[0]
    with torch.no_grad():
        assert torch.equal(again(tiny_tokens()).logits, loaded(tiny_tokens()).logits)
    assert again.config.quantization_config.layers == loaded.config.quantization_config.layers


def test_the_card_is_sent(tmp_path, listening):
    """The one beside the model, with the name on the Hub; else one made from the model."""
    model = tiny_llama()
    config = compress(model, "pivoted")
    card = f"---\ntags:\n- spectrim\n---\n# mine\n\n{loading()}"
    save_compressed(model, None, tmp_path / "out", config, SaveOptions(card=card))
    sent = listening.directory / "README.md"
    load(tmp_path / "out")[0].push_to_hub("somebody/smaller")
    assert sent.read_text() == card.replace(loading(), loading("somebody/smaller"))
    load(tmp_path / "out")[0].push_to_hub("somebody/smaller", tags=["mine"])
    assert "- mine" in sent.read_text()
    (tmp_path / "out" / "README.md").unlink()
    load(tmp_path / "out")[0].push_to_hub("somebody/other")
    assert '\nname = "somebody/other"' in sent.read_text()
    sent.unlink()
    tiny_llama().push_to_hub("somebody/dense")
    assert not sent.exists(), "transformers makes the card of a dense model"


def test_save_writes_a_card(tmp_path):
    model = tiny_llama()
    attach_config(model, compress(model, "pivoted"))
    save(model, None, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert loading() in text
    assert "| `up_proj` |" in text


def test_a_dense_export_has_the_card_too(tmp_path):
    model = tiny_llama()
    facts = CardFacts("a/b", "svd", "pivoted", 0.8, "none", sizes=("2 MB", "1 MB"))
    facts = replace(facts, figures=[("perplexity", "7.1", "7.9")])
    options = SaveOptions(card=model_card(facts))
    save_compressed(model, None, tmp_path / "out", compress(model, "pivoted"), options)
    text = (export_dense(tmp_path / "out", tmp_path / "dense") / "README.md").read_text()
    assert "import spectrim" not in text
    assert '\nname = "."' in text
    assert "| perplexity | 7.1 | 7.9 |" in text
    assert "1 MB" not in text
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "a/b"
