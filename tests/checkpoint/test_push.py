"""`push_to_hub` of a loaded compressed model sends what loads again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import CommitOperationAdd

from spectrim.checkpoint import load, save_compressed
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
