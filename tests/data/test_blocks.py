"""Rows begin as the tokenizer begins a text; packed rows are a prefix of the stream."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, processors

from spectrim.data import (
    BlockSettings,
    TokenBlocks,
    check_vocabulary,
    document_blocks,
    token_blocks,
)
from spectrim.data.blocks import fingerprint
from spectrim.data.tokenizing import SHUFFLE_POOL, first_tokens, in_order, leading_tokens
from spectrim.errors import InputError
from tests.tiny_models import BOS as BOS_TOKEN
from tests.tiny_models import EOS as EOS_TOKEN
from tests.tiny_models import plain_tokenizer, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BOS = TOKENIZER.bos_token_id
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1)
lengths = st.integers(2, 12)
unhurried = settings(deadline=None)  # machines are shared


def stream(documents: list[str]) -> list[int]:
    """The slow twin of packed rows: the whole stream, document by document."""
    tokens: list[int] = []
    for text in map(str.strip, documents):
        if text:
            tokens += [BOS, *TOKENIZER(text, add_special_tokens=False)["input_ids"]]
    return tokens


def prefixed(documents: list[str], length: int) -> list[list[tuple[int, bool]]]:
    """The slow twin of prefixed rows, token by token: id, and whether its loss counts."""
    rows: list[list[tuple[int, bool]]] = []
    for text in filter(None, map(str.strip, documents)):
        tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        if rows and len(rows[-1]) < length:
            rows[-1].append((BOS, False))
        for token in tokens:
            if not rows or len(rows[-1]) == length:
                rows.append([(BOS, False)])
            rows[-1].append((token, True))
    return rows


def marked(blocks: TokenBlocks) -> list[list[tuple[int, bool]]]:
    ones = torch.ones_like(blocks.ids, dtype=torch.bool)
    mask = ones if blocks.mask is None else blocks.mask
    scored = blocks.scored
    if scored is None:
        scored = mask.clone()
        scored[:, 0] = False
    rows = zip(blocks.ids, mask, scored, strict=True)
    return [
        list(zip(ids[m].tolist(), marks[m].tolist(), strict=True)) for ids, m, marks in rows
    ]


def real_tokens(blocks: TokenBlocks) -> list[int]:
    chosen = blocks.ids if blocks.mask is None else blocks.ids[blocks.mask]
    return chosen.flatten().tolist()


def quietly(documents: list[str], **settings: Any) -> TokenBlocks:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return token_blocks(documents, TOKENIZER, BlockSettings(**settings))


@unhurried
@given(texts, lengths)
def test_every_row_begins_as_the_tokenizer_begins_a_text(
    documents: list[str], length: int
) -> None:
    expected = prefixed(documents, length)
    assume(expected and len(expected[0]) >= 2)
    blocks = quietly(documents, length=length, keep_tail=True)
    assert marked(blocks) == [row for row in expected if len(row) >= 2]
    full = [row for row in expected if len(row) == length]
    assume(full)
    assert marked(quietly(documents, length=length)) == full


@unhurried
@given(texts, lengths, st.integers(1, 5))
def test_as_many_prefixed_rows_as_are_asked_for(
    documents: list[str], length: int, asked: int
) -> None:
    full = [row for row in prefixed(documents, length) if len(row) == length]
    assume(full)
    assert marked(quietly(documents, length=length, sequences=asked)) == full[:asked]


def test_a_prefix_of_several_tokens_is_never_scored() -> None:
    tokenizer = tiny_tokenizer()
    first, second = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} {second} $A", special_tokens=[(first, 0), (second, 1)]
    )
    blocks = token_blocks(["abcd", "ef"], tokenizer, BlockSettings(length=5, keep_tail=True))
    a = tokenizer.convert_tokens_to_ids("a")
    assert blocks.ids.tolist() == [
        [0, 1, a, a + 1, a + 2],
        [0, 1, a + 3, 0, 1],
        [0, 1, a + 4, a + 5, 0],
    ]
    assert blocks.scored is not None
    assert blocks.scored.tolist() == [
        [False, False, True, True, True],
        [False, False, True, False, False],
        [False, False, True, True, False],
    ]
    with pytest.raises(InputError, match="give --length 3 or more"):
        token_blocks(["abcd"], tokenizer, BlockSettings(length=2))


@unhurried
@given(texts, lengths)
def test_packed_blocks_are_a_prefix_of_the_stream(documents: list[str], length: int) -> None:
    expected = stream(documents)
    assume(len(expected) >= length)
    blocks = quietly(documents, length=length, rows="packed")
    assert blocks.mask is None
    assert real_tokens(blocks) == expected[: len(expected) // length * length]
    assert blocks.documents == sum(bool(text.strip()) for text in documents)
    assert blocks.settings["empty_documents"] == len(documents) - blocks.documents


@unhurried
@given(texts, lengths, st.integers(2, 60))
def test_the_tail_is_kept_when_asked(documents: list[str], length: int, most: int) -> None:
    expected = stream(documents)[:most]
    assume(len(expected) >= 2)
    if len(expected) % length == 1:  # one token alone predicts nothing
        expected = expected[:-1]
    blocks = quietly(documents, length=length, max_tokens=most, keep_tail=True, rows="packed")
    assert real_tokens(blocks) == expected
    assert blocks.tokens == len(expected)
    assert (blocks.mask is None) == (len(expected) % length == 0)


@unhurried
@given(texts, lengths, st.integers(1, 5))
def test_sequences_limit_and_warn(documents: list[str], length: int, asked: int) -> None:
    available = len(stream(documents)) // length
    assume(available)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = BlockSettings(length=length, sequences=asked, rows="packed")
        blocks = token_blocks(documents, TOKENIZER, settings)
    assert len(blocks) == min(asked, available)
    messages = [str(warning.message) for warning in caught]
    if asked > available:
        wanted = f"asked for {asked} sequences of {length} tokens"
        assert messages == [f"{wanted}, the text gives {available}; using those"]
        assert caught[0].category is UserWarning
    else:
        assert messages == []


@unhurried
@given(texts, lengths)
def test_documents_on_their_own(documents: list[str], length: int) -> None:
    kept = [text for text in documents if text.strip()]
    assume(kept)
    blocks = document_blocks(documents, TOKENIZER, BlockSettings(length=length))
    assert blocks.document_of_row is not None
    mask = torch.ones_like(blocks.ids, dtype=torch.bool) if blocks.mask is None else blocks.mask
    for number, text in enumerate(kept):
        own = blocks.document_of_row == number
        rows = prefixed([text], length)
        assert blocks.ids[own][mask[own]].tolist() == [t for row in rows for t, _ in row]


@unhurried
@given(texts, st.integers())
def test_a_seed_permutes_the_documents(documents: list[str], seed: int) -> None:
    shuffled = list(documents)
    random.Random(seed).shuffle(shuffled)
    expected = stream(shuffled)
    assume(len(expected) >= 2)
    blocks = quietly(documents, length=2, seed=seed, keep_tail=True, rows="packed")
    assert real_tokens(blocks) == expected[: len(expected) - (len(expected) % 2)]
    assert blocks.settings["seed"] == seed
    assert blocks.settings["order"] == "shuffled"


def test_a_stream_is_shuffled_within_its_pool_and_loses_nothing() -> None:
    names = [str(number) for number in range(SHUFFLE_POOL + 5)]
    ordered = list(in_order(iter(names), 0))
    assert ordered[-5:] == names[-5:]
    assert ordered != names
    assert sorted(ordered) == sorted(names)


def test_no_document_is_read_beyond_what_is_needed() -> None:
    def documents() -> Iterator[str]:
        yield "abcdef"
        yield "ghi"
        raise AssertionError("one document too many")

    blocks = token_blocks(documents(), TOKENIZER, BlockSettings(sequences=2, length=4))
    assert marked(blocks) == prefixed(["abcdef"], 4)[:2]
    assert blocks.documents == 1
    packed = BlockSettings(sequences=2, length=4, rows="packed")
    blocks = token_blocks(documents(), TOKENIZER, packed)
    assert real_tokens(blocks) == stream(["abcdef", "ghi"])[:8]


@unhurried
@given(st.lists(st.integers(3, 90), min_size=4, max_size=4), st.integers(0, 3))
def test_fingerprint_changes_with_a_token(tokens: list[int], place: int) -> None:
    ids = torch.tensor(tokens).reshape(2, 2)
    changed = ids.clone()
    changed.view(-1)[place] += 1
    mask = torch.ones(2, 2, dtype=torch.bool)
    marks = {
        fingerprint(ids, None),
        fingerprint(changed, None),
        fingerprint(ids, mask),
        fingerprint(ids.reshape(1, 4), None),
    }
    assert len(marks) == 4
    assert fingerprint(ids.clone(), None) in marks


def test_a_spec_is_a_source(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello<|endoftext|>there")
    settings = BlockSettings(length=4)
    blocks = token_blocks(str(path), TOKENIZER, settings)
    assert blocks.source == str(path)
    same = token_blocks(["hello", "there"], TOKENIZER, settings)
    assert blocks.fingerprint == same.fingerprint
    assert blocks.settings == same.settings
    assert blocks.settings | {"length": 4, "sequences": None} == blocks.settings


def test_a_tokenizer_that_adds_nothing() -> None:
    assert leading_tokens(TOKENIZER) == [BOS]
    tokenizer = plain_tokenizer()
    assert leading_tokens(tokenizer) == []
    assert first_tokens(tokenizer) == [tokenizer.bos_token_id]
    newline = tokenizer.convert_tokens_to_ids("\n")
    blocks = token_blocks(["abcd", "ef"], tokenizer, BlockSettings(length=8))
    assert real_tokens(blocks) == [
        *stream(["abcd"])[1:],
        newline,
        newline,
        *stream(["ef"])[1:],
    ]
    assert blocks.scored is not None
    assert blocks.scored.tolist() == [[False, True, True, True, False, False, True, True]]
    packed = BlockSettings(length=5, rows="packed")
    assert real_tokens(token_blocks(["abcd"], tokenizer, packed)) == stream(["abcd"])


@pytest.mark.parametrize("template", [f"{BOS_TOKEN} $A", f"{BOS_TOKEN} $A {EOS_TOKEN}"])
def test_a_tokenizer_that_keeps_no_latin_letters(template: str) -> None:
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Replace(Regex("[a-z]"), "")
    backend.post_processor = processors.TemplateProcessing(
        single=template, pair=None, special_tokens=[(BOS_TOKEN, 0), (EOS_TOKEN, 1)]
    )
    assert leading_tokens(tokenizer) == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "length is 1, expected at least 2"),
        ({"sequences": 0}, "sequences is 0, expected at least 1"),
        ({"length": 8, "max_tokens": 7}, "max_tokens is 7, expected at least 8"),
        ({"max_tokens": 1, "keep_tail": True}, "max_tokens is 1, expected at least 2"),
    ],
)
def test_unusable_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockSettings(**settings)


@pytest.mark.parametrize("build", [token_blocks, document_blocks])
def test_no_text(build: Any) -> None:
    for documents in ([], ["", " \n"]):
        with pytest.raises(InputError, match="holds no text"):
            build(documents, TOKENIZER, BlockSettings(length=4))


def test_too_few_tokens() -> None:
    message = "got 3 tokens of text, expected at least 9; give more text or a smaller --length"
    with pytest.raises(InputError, match=message):
        token_blocks(["abc"], TOKENIZER, BlockSettings(length=9))


def test_documents_on_their_own_are_not_counted_in_sequences() -> None:
    with pytest.raises(InputError, match="limited by max_tokens"):
        document_blocks(["abc"], TOKENIZER, BlockSettings(length=4, sequences=1))


@pytest.mark.parametrize(
    ("document", "message"),
    [("ab\ud800", "document 2 holds half a surrogate pair at character 2"), (7, "2 is int")],
)
def test_documents_that_are_not_text(document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        token_blocks(["abc", document], TOKENIZER, BlockSettings(length=4))


def test_foreign_tokens_are_named() -> None:
    blocks = token_blocks(["abcdefg"], TOKENIZER, BlockSettings(length=4))
    largest = int(blocks.ids.max())
    check_vocabulary(blocks, largest + 1)
    with pytest.raises(InputError, match=rf"token id {largest} \(row 1, position 3\).*match"):
        check_vocabulary(blocks, largest)
    negative = dataclasses.replace(blocks, ids=-blocks.ids - 1)
    with pytest.raises(InputError, match="do not match"):
        check_vocabulary(negative, 1000)
