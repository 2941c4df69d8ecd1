"""Several texts in one stream of rows, and conversations through the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.data.conversation import Conversation
from spectrim.data.mixing import apportion
from spectrim.errors import InputError
from tests.tiny_models import plain_tokenizer, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BOS = TOKENIZER.bos_token_id
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
)
CHAT = Conversation(({"role": "user", "content": "Hi"},), "line 1")


def with_template(tokenizer: Any, template: str = TEMPLATE) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def plain(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {name: tmp_path / f"{name}.txt" for name in "abc"}
    for name, path in paths.items():
        path.write_text(" ".join([name] * 400), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def origin(blocks: TokenBlocks) -> str:
    """Which text each row comes from."""
    return "".join(str(TOKENIZER.decode(row[1:])).strip()[0] for row in blocks.ids)


class TestShares:
    @given(
        shares=st.lists(st.floats(0.01, 10), min_size=1, max_size=6), total=st.integers(1, 500)
    )
    def test_whole_numbers_near_the_shares(self, shares: list[float], total: int) -> None:
        if total < len(shares):
            with pytest.raises(InputError, match="give more sequences or fewer texts"):
                apportion(total, shares)
            return
        counts = apportion(total, shares)
        assert sum(counts) == total
        assert min(counts) >= 1
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - total * share / sum(shares)) < len(shares)

    def test_rows_of_the_texts_in_turn(self, files: dict[str, str]) -> None:
        spec = f"{files['a']}@0.5 + {files['b']}@0.25 + {files['c']}@0.25"
        blocks = token_blocks(spec, TOKENIZER, BlockSettings(8, 16))
        assert sorted(origin(blocks)) == list("aaaabbcc")
        assert sorted(origin(blocks.every(2))) != list("aaaa")
        assert set(origin(blocks)[:4]) == set("abc")
        assert blocks.source == spec
        assert blocks.documents == 3

    def test_without_shares_equal(self, files: dict[str, str]) -> None:
        spec = f"{files['a']} + {files['b']}"
        assert origin(token_blocks(spec, TOKENIZER, BlockSettings(6, 16))).count("a") == 3

    def test_one_text_is_as_before(self, files: dict[str, str]) -> None:
        one = token_blocks(files["a"], TOKENIZER, BlockSettings(4, 16))
        shared = token_blocks(f"{files['a']}@0.1", TOKENIZER, BlockSettings(4, 16))
        assert one.fingerprint == shared.fingerprint

    def test_masks_and_scored_tokens_travel_with_their_rows(
        self, files: dict[str, str], tmp_path: Path
    ) -> None:
        short = tmp_path / "short.txt"
        short.write_text("d d\n<|endoftext|>\nd", encoding="utf-8")
        settings = BlockSettings(length=16, keep_tail=True)
        alone = [token_blocks(p, TOKENIZER, settings) for p in (files["a"], str(short))]
        mixed = token_blocks(f"{files['a']} + {short}", TOKENIZER, settings)
        assert mixed.mask is not None
        assert mixed.scored is not None
        assert mixed.tokens == sum(part.tokens for part in alone)
        row = origin(mixed).index("d")
        assert mixed.ids[row].equal(alone[1].ids[0])
        assert alone[1].mask is not None
        assert alone[1].scored is not None
        assert mixed.mask[row].equal(alone[1].mask[0])
        assert mixed.scored[row].equal(alone[1].scored[0])

    def test_shares_of_no_amount(self, files: dict[str, str]) -> None:
        with pytest.raises(InputError, match="shares of several texts need an amount"):
            token_blocks(
                f"{files['a']}@1 + {files['b']}@2", TOKENIZER, BlockSettings(length=16)
            )

    def test_limit_of_tokens_is_shared(self, files: dict[str, str]) -> None:
        settings = BlockSettings(length=16, max_tokens=160, keep_tail=True)
        blocks = token_blocks(f"{files['a']}@3 + {files['b']}@1", TOKENIZER, settings)
        assert origin(blocks).count("a") > 2 * origin(blocks).count("b")


class TestNullFields:
    def test_counted_and_said(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        texts = ["a " * 40, None, "b " * 40, None]
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        with pytest.warns(UserWarning, match="skipped 2 of the 4 records read"):
            blocks = token_blocks(str(path), TOKENIZER, BlockSettings(length=16))
        assert blocks.settings["null_documents"] == 2
        assert blocks.documents == 2


class TestConversations:
    def test_rows_hold_the_template_with_one_bos(self) -> None:
        tokenizer = with_template(tiny_tokenizer())
        settings = BlockSettings(length=16, keep_tail=True)
        blocks = token_blocks([CHAT], tokenizer, settings)  # type: ignore[list-item]
        assert blocks.mask is not None
        assert blocks.ids[0][blocks.mask[0]].tolist() == [BOS, *plain("user: Hi\n")]

    def test_packed_rows_have_one_bos_too(self) -> None:
        tokenizer = with_template(tiny_tokenizer())
        settings = BlockSettings(length=16, keep_tail=True, rows="packed")
        blocks = token_blocks([CHAT], tokenizer, settings)  # type: ignore[list-item]
        assert blocks.mask is not None
        assert blocks.ids[0][blocks.mask[0]].tolist() == [BOS, *plain("user: Hi\n")]

    def test_tokenizer_that_adds_nothing(self) -> None:
        tokenizer = with_template(plain_tokenizer(), TEMPLATE.replace("{{ bos_token }}", ""))
        settings = BlockSettings(length=16, keep_tail=True)
        blocks = token_blocks([CHAT], tokenizer, settings)  # type: ignore[list-item]
        expected = tokenizer("user: Hi\n", add_special_tokens=False)["input_ids"]
        assert blocks.ids[0, : len(expected)].tolist() == expected

    def test_without_a_template(self) -> None:
        with pytest.raises(InputError, match="line 1 is a conversation, and the tokenizer has"):
            token_blocks([CHAT], tiny_tokenizer(), BlockSettings(length=16))  # type: ignore[list-item]

    def test_template_that_refuses(self) -> None:
        tokenizer = with_template(tiny_tokenizer(), "{{ raise_exception('no such role') }}")
        with pytest.raises(InputError, match="line 1: the tokenizer's chat template refuses"):
            token_blocks([CHAT], tokenizer, BlockSettings(length=16))  # type: ignore[list-item]


def test_the_field_of_the_call_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a " * 40, "body": "b " * 40}))
    blocks = token_blocks(str(path), TOKENIZER, BlockSettings(1, 16), "body")
    assert torch.equal(blocks.ids[0, 1:], torch.tensor(plain("b " * 40)[:15]))
