"""Rows of tokens: where the answer begins, what is left out, what the loss is."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import spectrim
from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.data.tasks import (
    RowSettings,
    TaskBatch,
    TaskExample,
    TaskRows,
    calibration_blocks,
    load_task,
    task_loss,
    task_rows,
)
from spectrim.errors import InputError
from spectrim.models.targets import find_targets
from tests.shared_assets import shared_data
from tests.tiny_models import TINY_MODELS, plain_tokenizer, tiny_llama, tiny_tokenizer
from tests.tolerances import FLOAT32_RELATIVE

REFERENCE = Path(spectrim.__file__).parent / "assets" / "reference"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
EXAMPLES = [TaskExample("2+2=", "4"), TaskExample("", "plain"), TaskExample("Q: ten?", " 10")]


@pytest.fixture(scope="module")
def real() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(REFERENCE)


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def scored_text(rows: TaskRows, number: int, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(rows.ids[number][rows.scored[number]])


def without(tokenizer: PreTrainedTokenizerFast, *names: str) -> PreTrainedTokenizerFast:
    for name in names:
        setattr(tokenizer, f"{name}_token", None)
    return tokenizer


class TestRows:
    def test_bos_prompt_answer_eos_and_padding(self, tiny):
        rows = task_rows(EXAMPLES, tiny)
        assert len(rows) == 3
        assert rows.ids.dtype == torch.int64
        assert rows.ids.shape == rows.mask.shape == rows.scored.shape == (3, 12)
        texts = [tiny.decode(ids[mask]) for ids, mask in zip(rows.ids, rows.mask, strict=True)]
        assert texts == ["<s>2+2=4</s>", "<s>plain</s>", "<s>Q: ten? 10</s>"]
        assert rows.mask.sum(1).tolist() == [7, 7, 12]
        assert not rows.ids[~rows.mask].any()
        shown = [scored_text(rows, n, tiny) for n in range(3)]
        assert shown == ["4</s>", "plain</s>", " 10</s>"]
        assert rows.settings == {
            "length": 512, "labels": "answer", "examples": 3, "too_long": 0,
        }  # fmt: skip

    def test_all_labels_are_all_but_the_first(self, tiny):
        rows = task_rows(EXAMPLES, tiny, RowSettings(labels="all"))
        assert torch.equal(rows.scored[:, 1:], rows.mask[:, 1:])
        assert not rows.scored[:, 0].any()

    def test_the_fingerprint_tells_rows_and_labels_apart(self, tiny):
        first = task_rows(EXAMPLES, tiny).fingerprint
        assert first == task_rows(EXAMPLES, tiny, source="other").fingerprint
        others = [
            task_rows(EXAMPLES[:2], tiny),
            task_rows(EXAMPLES, tiny, RowSettings(labels="all")),
            task_rows([TaskExample("2+2", "=4"), *EXAMPLES[1:]], tiny),
        ]
        assert len({first, *(rows.fingerprint for rows in others)}) == 4

    def test_a_tokenizer_without_special_tokens(self):
        rows = task_rows(EXAMPLES, without(plain_tokenizer(), "bos", "eos"))
        assert rows.mask.sum(1).tolist() == [5, 5, 10]
        assert rows.scored.sum(1).tolist() == [1, 4, 3]  # nothing predicts a first token

    def test_a_tokenizer_that_adds_nothing_has_no_bos_in_its_rows(self, tiny):
        plain, usual = task_rows(EXAMPLES, plain_tokenizer()), task_rows(EXAMPLES, tiny)
        assert torch.equal(plain.ids, usual.ids[:, 1:])
        assert torch.equal(plain.scored[:, 1:], usual.scored[:, 2:])

    def test_a_tokenizer_that_cannot_say_where_its_tokens_lie(self, tiny):
        class Slow:
            is_fast = False
            bos_token_id, eos_token_id = 0, 1

            def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
                return {"input_ids": tiny(text, **options)["input_ids"]}

        slow, fast = task_rows(EXAMPLES, Slow()), task_rows(EXAMPLES, tiny)
        for name in ("ids", "mask", "scored"):
            assert torch.equal(getattr(slow, name), getattr(fast, name))

    def test_long_examples_are_left_out_and_counted(self, tiny):
        with pytest.warns(UserWarning, match="1 of 3 examples are longer than 7 tokens"):
            rows = task_rows(EXAMPLES, tiny, RowSettings(length=7))
        assert rows.ids.shape == (2, 7)
        assert rows.settings["too_long"] == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(task_rows(EXAMPLES, tiny, RowSettings(length=12))) == 3

    def test_nothing_left(self, tiny):
        with pytest.raises(InputError, match=r"none of the 3 .* 6 tokens, the shortest has 7"):
            task_rows(EXAMPLES, tiny, RowSettings(length=6))
        with pytest.raises(InputError, match="no example"):
            task_rows([], tiny)

    @pytest.mark.parametrize("given", [{"length": 1}, {"labels": "prompt"}])
    def test_bad_settings(self, given):
        with pytest.raises(InputError, match="expected"):
            RowSettings(**given)


class TestBorder:
    """On the bundled byte-level tokenizer, whose tokens join letters and blanks."""

    @pytest.mark.parametrize(
        ("prompt", "answer"),
        [
            ("Question: How many?\nAnswer:", " 72"),
            ("print(", "x)"),
            ("naïve —", " Größe \U0001f600"),
            ("", "no prompt"),
        ],
    )
    def test_a_clean_border(self, real, prompt, answer):
        rows = task_rows([TaskExample(prompt, answer)], real)
        assert scored_text(rows, 0, real).removesuffix("</s>") == answer
        together = real(prompt + answer, add_special_tokens=False)["input_ids"]
        assert rows.ids[0].tolist() == [0, *together, 1]

    @pytest.mark.parametrize(("prompt", "answer"), [("the r", "eturn"), ("Answer: ", "return")])
    def test_a_token_over_the_border_belongs_to_the_answer(self, real, prompt, answer):
        together = real(prompt + answer, add_special_tokens=False)["input_ids"]
        apart = [real(t, add_special_tokens=False)["input_ids"] for t in (prompt, answer)]
        assert together != apart[0] + apart[1]
        rows = task_rows([TaskExample(prompt, answer)], real)
        found = scored_text(rows, 0, real).removesuffix("</s>")
        assert rows.ids[0].tolist() == [0, *together, 1]
        assert found.endswith(answer)
        assert len(found) > len(answer)

    @settings(deadline=None)
    @given(prompt=texts, answer=texts.filter(str.strip))
    def test_every_answer_token_is_scored_and_no_other(self, real, prompt, answer):
        rows = task_rows([TaskExample(prompt, answer)], real)
        encoded = real(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        expected = [False, *(end > len(prompt) for end in ends), True]
        assert rows.scored[0].tolist() == expected
        assert sum(expected) >= 2


class TestBatches:
    @pytest.fixture(scope="class")
    def rows(self, tiny) -> TaskRows:
        return task_rows(
            [TaskExample("q" * (n % 7), "a" * (1 + n % 5)) for n in range(23)], tiny
        )

    @staticmethod
    def seen(rows: TaskRows, *args: int) -> list[list[int]]:
        return [
            ids[mask].tolist()
            for batch in rows.batches(*args)
            for ids, mask in zip(batch.ids, batch.mask, strict=True)
        ]

    def test_every_row_once_in_an_order_of_its_own(self, rows):
        whole = [ids[mask].tolist() for ids, mask in zip(rows.ids, rows.mask, strict=True)]
        orders = [self.seen(rows, 4, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
        for order in orders:
            assert sorted(order) == sorted(whole)
        assert all(orders[a] != orders[b] for a in range(4) for b in range(a))
        assert orders[1] == self.seen(rows, 4, 0, 1) == self.seen(rows, 23, 0, 1)

    def test_cut_to_the_longest_row_of_each(self, rows):
        sizes = []
        for batch in rows.batches(4, 0):
            sizes.append(len(batch.ids))
            assert batch.ids.shape == batch.scored.shape
            assert batch.mask[:, -1].any()
            assert (batch.scored & ~batch.mask).sum() == 0
        assert sizes == [4, 4, 4, 4, 4, 3]
        assert len({batch.ids.shape[1] for batch in rows.batches(1, 0)}) > 3

    def test_bad_size(self, rows):
        with pytest.raises(InputError, match="batch size is 0"):
            next(rows.batches(0, 0))


class TestLoss:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
    @pytest.mark.parametrize("labels", ["answer", "all"])
    def test_equal_to_the_sum_over_single_rows(self, tiny, name, labels):
        model = TINY_MODELS[name]()
        rows = task_rows(EXAMPLES, tiny, RowSettings(labels=labels))
        loss, count = task_loss(model, rows.batch(torch.arange(3)))
        expected = torch.zeros(())
        for ids, mask, scored in zip(rows.ids, rows.mask, rows.scored, strict=True):
            logits = model(input_ids=ids[mask][None]).logits[0, :-1]
            log_p = logits.log_softmax(-1)[torch.arange(len(logits)), ids[mask][1:]]
            expected = expected - log_p[scored[mask][1:]].sum().detach()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=FLOAT32_RELATIVE)
        assert count == int(rows.scored.sum())
        loss.backward()
        assert model.get_input_embeddings().weight.grad.isfinite().all()

    def test_only_logits_that_are_needed(self, tiny, monkeypatch):
        model, asked = tiny_llama(), []
        batch = task_rows([TaskExample("prompt", "ab")], tiny).batch(torch.arange(1))
        plain, _ = task_loss(Plain(model), batch)
        own = model.lm_head.forward
        monkeypatch.setattr(model.lm_head, "forward", lambda x: asked.append(x.shape) or own(x))
        loss, _ = task_loss(model, batch)
        assert asked == [(1, 4, 32)]
        assert loss.item() == pytest.approx(plain.item(), rel=FLOAT32_RELATIVE)

    def test_in_float32_whatever_the_model(self, tiny):
        batch = task_rows(EXAMPLES, tiny).batch(torch.arange(3))
        loss, _ = task_loss(tiny_llama().bfloat16(), batch)
        assert loss.dtype == torch.float32

    def test_nothing_scored(self, tiny):
        batch = task_rows(EXAMPLES, tiny).batch(torch.arange(3))
        with pytest.raises(InputError, match="no token of the batch is scored"):
            task_loss(tiny_llama(), TaskBatch(batch.ids, batch.mask, batch.scored & False))


class Plain(nn.Module):
    """A model whose `forward` cannot leave logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        assert "logits_to_keep" not in inspect.signature(self.forward).parameters

    def forward(self, input_ids, attention_mask, use_cache):
        output = self.model(input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return SimpleNamespace(logits=output.logits)


class TestCalibration:
    def test_blocks_carry_what_is_scored(self, tiny):
        rows = task_rows(EXAMPLES, tiny, source="given")
        blocks = calibration_blocks(rows)
        assert blocks.tokens == int(rows.mask.sum())
        assert (blocks.source, blocks.documents) == ("given", 3)
        assert blocks.fingerprint == rows.fingerprint
        assert blocks.scored is rows.scored
        assert blocks.mask is rows.mask
        even = task_rows([TaskExample("ab", "c"), TaskExample("a", "bc")], tiny)
        assert calibration_blocks(even).mask is None

    def test_labels_change_gradients_and_not_inputs(self, tiny):
        model = tiny_llama()
        targets = find_targets(model)
        wanted = CalibrationSettings(("input_covariance", "gradient_covariance"))
        found = {}
        for labels in ("answer", "all"):
            rows = task_rows(EXAMPLES, tiny, RowSettings(labels=labels))
            found[labels] = calibrate(model, targets, calibration_blocks(rows), wanted)
        name = targets[0].name
        answer, all_ = (found[labels].layer(name) for labels in ("answer", "all"))
        assert answer.count == all_.count == 26
        assert torch.equal(answer["input_covariance"], all_["input_covariance"])
        sizes = [float(part["gradient_covariance"].trace()) for part in (answer, all_)]
        assert 0 < sizes[0] < sizes[1]


@pytest.fixture(scope="module")
def gsm8k() -> list[TaskExample]:
    return load_task(f"gsm8k:{shared_data('gsm8k', 'test.jsonl')}")


def test_gsm8k_from_file_to_rows(gsm8k, real):
    assert len(gsm8k) == 1319
    with pytest.warns(UserWarning, match="of 1319 examples are longer than 512 tokens"):
        rows = task_rows(gsm8k, real, RowSettings(length=512))
    left_out = rows.settings["too_long"]
    assert 0 < left_out < 100
    assert len(rows) == 1319 - left_out
    assert rows.ids.shape[1] <= 512
    assert int(rows.ids.max()) < len(real)
    texts = {f"<s>{e.prompt}{e.answer}</s>": e for e in gsm8k}
    for number in range(0, len(rows), 37):
        example = texts[real.decode(rows.ids[number][rows.mask[number]])]
        assert scored_text(rows, number, real) == example.answer + "</s>"
        assert example.answer.endswith(f"#### {example.final}") or "," in example.answer
