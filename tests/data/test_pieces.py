"""A long text in pieces has the tokens of the whole, and no more of it is read than needed."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.data import BlockSettings, pieces, token_blocks
from spectrim.data.pieces import encode, encode_pieces
from tests.tiny_models import plain_tokenizer, tiny_tokenizer

TOKENIZERS = {"tiny": tiny_tokenizer(), "plain": plain_tokenizer()}
words = st.lists(st.sampled_from(["a", "the", "café", "雨", "x" * 30, "\n\n", "  ", "🙂"]))


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "WINDOW", 300)
    monkeypatch.setattr(pieces, "OVERLAP", 120)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_are_the_tokens_of_the_whole(name: str) -> None:
    @settings(deadline=None)
    @given(words=words)
    def holds(words: list[str]) -> None:
        text = " ".join([*words, "end"] * 40)
        tokenizer = TOKENIZERS[name]
        assert list(chain(*encode_pieces(text, tokenizer))) == encode(text, tokenizer)

    holds()


class Counting:
    """A tokenizer that counts the characters it was given."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer(text, **options)


def test_no_more_is_tokenized_than_is_asked_for() -> None:
    tokenizer = Counting(tiny_tokenizer())
    token_blocks(["some words of a long text " * 4_000], tokenizer, BlockSettings(2, 16))
    assert tokenizer.characters < 1_000


def test_a_text_where_no_windows_agree_is_tokenized_whole() -> None:
    class Odd(Counting):
        def __call__(self, text: str, **options: Any) -> Any:
            found = self._tokenizer(text, **options)
            if "offset_mapping" in found:  # ids that depend on the length of the text
                found["input_ids"] = [len(text) for _ in found["input_ids"]]
            return found

    tokenizer = Odd(tiny_tokenizer())
    text = "some words " * 100 + "."
    assert list(chain(*encode_pieces(text, tokenizer)))[-5:] == encode(text, tokenizer)[-5:]
