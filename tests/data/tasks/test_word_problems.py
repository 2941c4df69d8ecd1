"""Generated word problems: the same everywhere, splits apart, every worked step right."""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.word_problems import SPLITS, word_problems
from spectrim.data.tasks.word_problems.problems import draw_problems
from spectrim.data.tasks.word_problems.sentences import EVENTS, OPENINGS, QUESTIONS
from spectrim.errors import InputError

GOLDEN = "e1e1415b028bd2e043ef12d817e135907f8b0bd8f2b30809a04ff690ce422759"
SIGNS = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
}


def numbers_in(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def evaluated(answer: str) -> list[Fraction]:
    """The result of each worked step, recomputed; fails where the step states another."""
    results = []
    for line in answer.splitlines()[:-1]:
        left, sign, right, equals, stated = line.split(" ")
        result = SIGNS[sign](Fraction(left), Fraction(right))
        assert (equals, result) == ("=", Fraction(stated)), line
        results.append(result)
    return results


def used_numbers(example: TaskExample) -> set[int]:
    """The operands of the worked steps that are no results of steps before them."""
    known, used = set(), set()
    for line in example.answer.splitlines()[:-1]:
        left, _, right, _, result = line.split(" ")
        used |= {int(left), int(right)} - known
        known.add(int(result))
    return used


@pytest.fixture(scope="module")
def problems():
    return {split: draw_problems(split, 1500, seed=3) for split in SPLITS}


def test_the_problems_are_the_same_on_every_machine():
    texts = [e.prompt + e.answer for split in SPLITS for e in word_problems(split, 100, seed=7)]
    assert hashlib.sha256("\0".join(texts).encode()).hexdigest() == GOLDEN


@pytest.mark.slow
def test_no_template_is_in_two_splits(problems):
    """Recognised from the sentences alone: words that vary inside a template are blanked."""
    keys = {split: {p.template.key for p in found} for split, found in problems.items()}
    skeletons = {
        split: {_skeleton(p.example.prompt) for p in found} for split, found in problems.items()
    }
    for found in (keys, skeletons):
        assert not found["train"] & found["test"]
        assert not found["train"] & found["validation"]
        assert not found["validation"] & found["test"]
    assert len(keys["test"]) > 1000


PRONOUNS = {"she", "he", "her", "his", "him", "She", "He", "Her", "His"}
FIXED_WORDS = {
    word
    for forms in (OPENINGS, EVENTS, QUESTIONS)
    for wordings in forms.values()
    for wording in wordings
    for word in re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", wording))
}


def _skeleton(prompt: str) -> str:
    """The place (every opening states it) and the sentences with all that varies blanked."""
    place = re.search(r"(at|in|on|by) (the )?[a-z]+", prompt, re.IGNORECASE)
    text = re.sub(r"\d+", "#", prompt)
    return f"{place[0].lower()}: " + re.sub(r"[A-Za-z]+", _blanked, text)


def _blanked(word: re.Match[str]) -> str:
    if word[0] in PRONOUNS:
        return "@"
    return word[0] if word[0] in FIXED_WORDS else "_"


def test_no_tuple_of_numbers_is_in_two_splits(problems):
    tuples = {
        split: {tuple(numbers_in(p.example.prompt)) for p in found}
        for split, found in problems.items()
    }
    assert tuples["test"] == {p.numbers for p in problems["test"]}
    assert not tuples["train"] & tuples["test"]
    assert not tuples["train"] & tuples["validation"]
    assert not tuples["validation"] & tuples["test"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_worked_step_is_right_and_uses_the_numbers_of_the_problem(problems, split):
    for problem in problems[split]:
        example = problem.example
        results = evaluated(example.answer)
        assert all(r.denominator == 1 and 0 < r <= 200 for r in results), example
        assert example.answer.endswith(f"\n#### {results[-1]}")
        assert example.final == str(results[-1])
        assert used_numbers(example) <= set(problem.numbers), example


def test_problems_have_two_to_four_steps_and_all_sentence_forms_occur(problems):
    found = problems["train"]
    steps = [len(p.example.answer.splitlines()) - 1 for p in found]
    assert set(steps) == {2, 3, 4}
    assert min(steps.count(n) for n in (2, 3, 4)) > len(found) / 20
    forms = {
        f for p in found for f in (p.template.opening, *p.template.events, p.template.question)
    }
    assert len(forms) == sum(
        len(w) for kinds in (OPENINGS, EVENTS, QUESTIONS) for w in kinds.values()
    )


def test_every_word_of_a_test_problem_occurs_in_training(problems):
    words = {
        split: {w for p in found for w in re.findall(r"[A-Za-z]+", p.example.prompt)}
        for split, found in problems.items()
    }
    assert words["test"] | words["validation"] <= words["train"]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SPLITS), st.integers(1, 40), st.integers(-(2**70), 2**70))
def test_any_seed_and_count(split, count, seed):
    found = word_problems(split, count, seed)
    assert found == word_problems(split, count, seed)
    assert len({e.prompt for e in found}) == len(found) == count
    assert found == word_problems(split, count + 3, seed)[:count]
    for example in found:
        assert evaluated(example.answer)[-1] == int(example.final)
        assert example.prompt.endswith(("?\n", ".\n"))


def test_seeds_differ():
    assert word_problems("train", 5, 0) != word_problems("train", 5, 1)


@pytest.mark.parametrize("split", ["", "Train", "held_out"])
def test_unknown_split(split):
    with pytest.raises(InputError, match="train, validation, test"):
        word_problems(split, 1)


@pytest.mark.parametrize("count", [0, -1])
def test_no_problems(count):
    with pytest.raises(InputError, match="at least one"):
        word_problems("train", count)
