"""Greedy answers do not depend on their batch, and accuracy counts the right ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from spectrim.data.tasks import TaskExample
from spectrim.errors import InputError, UnknownNameError
from spectrim.evaluation.tasks.accuracy import AccuracySettings, exact_match, reader_for
from spectrim.evaluation.tasks.generation import answer_groups
from tests.tiny_models import (
    TINY_MODELS,
    VOCABULARY,
    plain_tokenizer,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
)

PROMPTS = ["2+2=", "", "what is ten times ten?", "a", "who", "long " * 12, "Q: 7?\nA:"]
NEW = 12


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def by_hand(model: PreTrainedModel, tokenizer, prompt: str, most: int = NEW) -> str:
    """Argmax, one prompt and one token at a time, without padding or cache."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(most):
        with torch.no_grad():
            token = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
        if int(token) == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token[None]], 1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """With weights large enough that what it says depends on what it read."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def saying(text: str, tokenizer) -> PreTrainedModel:
    """A model that reads its positions only: given the first character, it says the others."""
    model = tiny_gpt2()
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wpe.weight[:32] = torch.eye(32)
        model.lm_head = nn.Linear(32, VOCABULARY, bias=False)
        model.lm_head.weight.zero_()
        for position, token in enumerate(ids):
            model.lm_head.weight[token, position] = 1
    return model


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_bias"])
def test_batched_answers_equal_single_ones(name, tokenizer):
    model = lively(TINY_MODELS[name]())
    answers = [by_hand(model, tokenizer, prompt) for prompt in PROMPTS]
    assert len(set(answers)) > 3
    examples = [TaskExample(p, a.strip() or "-") for p, a in zip(PROMPTS, answers, strict=True)]
    for size in (1, 3, 16):
        settings = AccuracySettings(size, NEW, stop=(), predictions=True)
        result = exact_match(model, tokenizer, examples, settings)
        assert result["predictions"] == answers
        share = sum(bool(answer.strip()) for answer in answers) / 7
        assert (result["accuracy"], result["answered"]) == (share, share)
        assert result["count"] == 7
        assert result["seconds"] > 0


def test_only_right_answers_count(tokenizer):
    model = tiny_llama()
    answers = [by_hand(model, tokenizer, prompt) for prompt in PROMPTS]
    wrong = {1, 4}
    examples = [
        TaskExample(p, a + "!" if n in wrong else a)
        for n, (p, a) in enumerate(zip(PROMPTS, answers, strict=True))
    ]
    result = exact_match(model, tokenizer, examples, AccuracySettings(4, NEW, stop=()))
    assert result["accuracy"] == 5 / 7
    assert "predictions" not in result


class TestFinals:
    @pytest.mark.parametrize(
        ("example", "name"),
        [
            (TaskExample("", "so\n#### 5", "5"), "gsm8k"),
            (TaskExample("", r"so $\boxed{\frac12}$", r"\frac{1}{2}"), "math"),
            (TaskExample("", "That makes 1,200 in all.", "1200"), "number"),
            (TaskExample("", "Monday", "Monday"), "text"),
            (TaskExample("", "It is Monday", "Monday"), "text"),
            (TaskExample("", "#### 5"), "text"),
        ],
    )
    def test_the_reference_tells_how_to_read(self, example, name):
        assert reader_for(example) == name

    @pytest.mark.parametrize(
        ("said", "reference", "accuracy", "answered"),
        [
            ("x#### 12.0", TaskExample("x", "#### 12", "12"), 1.0, 1.0),
            ("xmakes 12", TaskExample("x", "#### 12", "12"), 1.0, 1.0),
            ("x#### 13", TaskExample("x", "#### 12", "12"), 0.0, 1.0),
            ("xnone", TaskExample("x", "#### 12", "12"), 0.0, 0.0),
            (r"x\boxed{.5}", TaskExample("x", r"$\boxed{\frac12}$", r"\frac12"), 1.0, 1.0),
            ("x12", TaskExample("x", r"$\boxed{12}$", "12"), 0.0, 0.0),
            ("xMonday", TaskExample("x", "Monday"), 1.0, 1.0),
        ],
    )
    def test_final_answers_are_compared(self, tokenizer, said, reference, accuracy, answered):
        model = saying(said, tokenizer)
        settings = AccuracySettings(max_new_tokens=30, predictions=True)
        result = exact_match(model, tokenizer, [reference], settings)
        assert result["predictions"] == [said[1:]]
        assert (result["accuracy"], result["answered"]) == (accuracy, answered)

    def test_a_reader_that_is_asked_for(self, tokenizer):
        model, example = saying("xis 5", tokenizer), TaskExample("x", "5")
        assert exact_match(model, tokenizer, [example])["accuracy"] == 0.0
        settings = AccuracySettings(reader="number")
        assert exact_match(model, tokenizer, [example], settings)["accuracy"] == 1.0

    def test_what_follows_a_stop_is_cut_off(self, tokenizer):
        model = saying("x7;Q8", tokenizer)
        settings = AccuracySettings(stop=(";Q",), reader="number")
        examples = [TaskExample("x", "7", "7"), TaskExample("x", "8", "8")]
        assert exact_match(model, tokenizer, examples, settings)["accuracy"] == 0.5


class TestLength:
    def test_ends_at_eos_also_one_that_only_the_model_names(self, tokenizer):
        model = saying("xab", tokenizer)
        settings = AccuracySettings(max_new_tokens=40, predictions=True)
        example = [TaskExample("x", "ab")]
        assert exact_match(model, tokenizer, example, settings)["predictions"] == ["ab"]
        (b,) = tokenizer("b", add_special_tokens=False)["input_ids"]
        model.generation_config.eos_token_id = [b]
        assert exact_match(model, tokenizer, example, settings)["predictions"] == ["a"]

    def test_default_follows_the_longest_reference(self, tokenizer):
        model = tiny_llama()
        model.generation_config.eos_token_id = None
        examples = [TaskExample("a", "b" * 9), TaskExample("c", "d")]
        assert {g.room for g in answer_groups(model, tokenizer, examples, 2, None)} == {25}

    @pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
    def test_prompts_near_the_end_of_the_context(self, build, tokenizer):
        model = build()
        prompts = ["ab", "c" * 121, "d" * 127, "e" * 200, "f"]
        examples = [TaskExample(p, "answer") for p in prompts]
        settings = AccuracySettings(4, NEW, stop=(), predictions=True)
        with pytest.warns(UserWarning, match="2 of 5 prompts fill the model's context of 128"):
            found = exact_match(model, tokenizer, examples, settings)["predictions"]
        expected = [by_hand(model, tokenizer, p) for p in ("ab", "f")]
        assert [found[0], found[4]] == expected
        assert found[1] == by_hand(model, tokenizer, prompts[1], 6)
        assert found[2] == found[3] == ""

    def test_groups_are_sorted_by_length(self, tokenizer):
        examples = [TaskExample("p" * n, "a") for n in (9, 1, 5, 120, 3)]
        groups = answer_groups(tiny_llama(), tokenizer, examples, 2, 10)
        assert groups == [([1, 4], 10), ([2, 0], 10), ([3], 7)]


def test_everything_is_left_as_it_was(tokenizer):
    model = tiny_llama().train()
    model.model.layers[0].eval()
    own = GenerationConfig(do_sample=True, temperature=0.1, repetition_penalty=9.0)
    model.generation_config = own
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    before = [m.training for m in model.modules()]
    plain = tiny_llama()
    settings = AccuracySettings(3, NEW, stop=(), predictions=True)
    examples = [TaskExample(p, "x") for p in PROMPTS]
    found = exact_match(model, tokenizer, examples, settings)["predictions"]
    assert found == [by_hand(plain, tokenizer, p) for p in PROMPTS]
    assert [m.training for m in model.modules()] == before
    assert model.generation_config is own
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token is None

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exact_match(model, tokenizer, examples, settings, lambda items, what, total: fail())
    assert [m.training for m in model.modules()] == before
    assert model.generation_config is own


def test_factored_layers(tokenizer):
    model = tiny_llama()
    plain = [by_hand(model, tokenizer, p) for p in PROMPTS]
    for block in model.model.layers:
        u, s, v = torch.linalg.svd(block.mlp.up_proj.weight.detach(), full_matrices=False)
        right, left = nn.Linear(32, 32, bias=False), nn.Linear(32, 64, bias=False)
        right.weight.data, left.weight.data = v, u * s
        block.mlp.up_proj = nn.Sequential(right, left)
    settings = AccuracySettings(3, NEW, stop=(), predictions=True)
    examples = [TaskExample(p, "x") for p in PROMPTS]
    assert exact_match(model, tokenizer, examples, settings)["predictions"] == plain


def test_progress_is_told(tokenizer):
    told = []

    def track(items, what, total):
        told.append((what, total))
        for item in items:
            told.append(item.numbers)
            yield item

    examples = [TaskExample(p, "x") for p in PROMPTS]
    exact_match(tiny_llama(), tokenizer, examples, AccuracySettings(3, 1), track)
    assert told == [("answering", 3), [1, 3, 4], [0, 6, 2], [5]]


def test_unusable_input(tokenizer):
    with pytest.raises(InputError, match="at least one example"):
        exact_match(tiny_llama(), tokenizer, [])
    for given in ({"batch_size": 0}, {"max_new_tokens": 0}):
        with pytest.raises(InputError, match="at least 1"):
            AccuracySettings(**given)
    with pytest.raises(UnknownNameError, match="gsm8k, math, number, text"):
        AccuracySettings(reader="latex")
    bare = plain_tokenizer()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(InputError, match="without tokens"):
        exact_match(tiny_llama(), bare, [TaskExample("", "a")])
