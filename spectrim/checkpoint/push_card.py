"""Let `push_to_hub` of a compressed model send its card in place of transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel
from transformers.utils import hub

from spectrim.checkpoint.card import card_beside, made_card, with_name
from spectrim.checkpoint.config import SpectrimConfig
from spectrim.models.kind import kind_of

_MAKER = "create_and_tag_model_card"


def card_of(model: PreTrainedModel, name: str) -> str:
    """Return the card beside the checkpoint that `model` was loaded from, else a made one.

    name: what the load line names.
    """
    source = str(getattr(model.config, "_name_or_path", "") or "")
    if (card := card_beside(source)) is not None:
        return with_name(card, name)
    return made_card(source, model.config.quantization_config, name, kind_of(model))


def keep_cards() -> None:
    """Wrap `PreTrainedModel.push_to_hub`, once."""
    push = PreTrainedModel.push_to_hub
    if hasattr(push, "spectrim"):
        return

    @wraps(push)
    def push_to_hub(self: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        settings = getattr(self.config, "quantization_config", None)
        if not isinstance(settings, SpectrimConfig):
            return push(self, repo_id, *args, **kwargs)
        with _sending(card_of(self, repo_id), kwargs.get("tags")):
            return push(self, repo_id, *args, **kwargs)

    push_to_hub.spectrim = True  # type: ignore[attr-defined]
    PreTrainedModel.push_to_hub = push_to_hub  # type: ignore


@contextmanager
def _sending(card: str, tags: Any) -> Iterator[None]:
    """Give transformers `card` for the one it would make."""
    before = getattr(hub, _MAKER)
    setattr(hub, _MAKER, lambda *args, **kwargs: _tagged(card, tags))
    try:
        yield
    finally:
        setattr(hub, _MAKER, before)


def _tagged(card: str, tags: Any) -> Any:
    """Return a card that saves itself, with further tags."""
    found: Any = ModelCard(card, ignore_metadata_errors=True)
    wanted = [tags] if isinstance(tags, str) else list(tags or [])
    if wanted:
        found.data.tags = list(dict.fromkeys([*(found.data.tags or []), *wanted]))
        return found
    return _AsWritten(card)


class _AsWritten:
    """A card whose text is kept to the letter."""

    def __init__(self, text: str):
        self._text = text

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self._text, encoding="utf-8")
