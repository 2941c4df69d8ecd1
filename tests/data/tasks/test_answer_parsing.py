"""Final answers are found where they stand, and compared as what they mean."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.data.tasks import extract_gsm8k, extract_math, extract_number, same_answer
from spectrim.data.tasks.answer_parsing import normalize_answer
from tests.shared_assets import shared_data

unhurried = settings(deadline=None)  # machines are shared
PIECES = [
    "\\boxed",
    "\\fbox",
    "\\frac",
    "\\text{",
    "\\sqrt",
    "####",
    *"{}\\$-,./1x=%^ \n\u2212٣",
    "456",
]
latex = st.lists(st.sampled_from(PIECES)).map("".join)
anything = st.text(max_size=60) | latex


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_official_gsm8k_answer(split):
    lines = shared_data("gsm8k", f"{split}.jsonl").read_text().splitlines()
    assert len(lines) == {"train": 7473, "test": 1319}[split]
    for line in lines:
        answer = json.loads(line)["answer"]
        wanted = answer.split("####")[1].strip()
        found = extract_gsm8k(answer)
        assert found == wanted.replace(",", ""), answer
        assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", found)
        assert same_answer(found, wanted)
        assert extract_number(answer) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 18", "18"),
        ("so\n####18\nmore #### 19", "18"),
        ("#### 1,234,567", "1234567"),
        ("#### -5", "-5"),
        ("#### \u22125", "-5"),
        ("#### $-5.50.", "-5.50"),
        ("#### -$5", "-5"),
        ("#### $70,000", "70000"),
        ("#### .75", ".75"),
        ("#### 5%", "5"),
        ("#### 12,34", "12"),
        ("#### about 5", None),
        ("### 5", None),
        ("The answer is 5", None),
        ("", None),
    ],
)
def test_gsm8k(text, expected):
    assert extract_gsm8k(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("first 3, then 4.", "4"),
        ("He paid $1,200.50 for it", "1200.50"),
        ("It is -7 degrees", "-7"),
        ("7-3 is left", "3"),
        ("(x)-3", "3"),
        ("loses -$20", "-20"),
        ("1,2345", "2345"),
        ("none at all", None),
    ],
)
def test_last_number(text, expected):
    assert extract_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"Thus $\boxed{42}$.", "42"),
        (r"$\boxed{1}$, no: $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"$\fbox{\text{(A)}}$", r"\text{(A)}"),
        (r"$\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"$\boxed{\left\{x : x > 0\right\}}$", r"\left\{x : x > 0\right\}"),
        (r"$\boxed{ {a} {b{c}} }$ tail }", "{a} {b{c}}"),
        (r"$\boxed 7$", "7"),
        (r"is \boxed 7.", "7"),
        (r"$\boxed  {8}$", "8"),
        (r"$\boxed{9", None),
        (r"$\boxed{\}$", None),
        (r"$\boxed{}$", None),
        (r"\boxedness{3}", None),
        (r"ends in \boxed", None),
        ("42", None),
    ],
)
def test_math(text, expected):
    assert extract_math(text) == expected


@pytest.mark.parametrize(
    "spellings",
    [
        (r"\frac{1}{2}", r"\dfrac12", r"\tfrac{1}2", "1/2", "0.5", ".5", r"\frac 12"),
        (r"-\frac{3}{4}", r"\frac{-3}{4}", "-3/4", "-0.75", r"\frac{3}{-4}"),
        ("1000", "1,000", "1{,}000", r"1,\!000", r"\$1,000", "1000.0", "$1000$", "1000."),
        ("50", r"50\%", "50%"),
        ("45", r"45^\circ", r"45^{\circ}", "45°", r"45\text{ degrees}", "45 degrees"),
        ("10", r"10\text{ cm}^2", r"10\ \mathrm{cm}", r"10 \mbox{ inches}", "10 cm^2"),
        (r"(3,\frac{\pi}{2})", r"\left( 3, \dfrac{\pi}{2} \right)", r"\big(3,\,\frac\pi2\big)"),
        ("5", "x=5", "x = 5", "x_1 = 5", "+5", "5.00"),
        (r"3\sqrt{2}", r"3\sqrt2", r"3 \sqrt 2"),
        ("Evelyn", r"\text{Evelyn}", r"\textbf{Evelyn}", r"\mbox{ Evelyn }"),
        (r"\text{(A)}", "(A)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ],
)
def test_spellings_of_one_answer(spellings):
    for a in spellings:
        for b in spellings:
            assert same_answer(a, b), (a, normalize_answer(a), b, normalize_answer(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("5", "-5"),
        ("5", "50"),
        ("1/3", "0.333"),
        (r"\frac{1}{2}", r"\frac{2}{1}"),
        ("(1,2)", "(2,1)"),
        (r"2\pi", "2"),
        (r"2\mathbf{i}", "2"),
        ("x+1", "x-1"),
        ("A", "B"),
        ("1/0", "2/0"),
        ("$", "%"),
        ("", ""),
        ("3", None),
        (None, None),
        ("5 or 6", "5"),
        ("(1,234)", "(1234)"),
    ],
)
def test_different_answers(a, b):
    assert not same_answer(a, b)


@unhurried
@given(text=anything, other=anything)
def test_any_text_is_read_without_an_error(text, other):
    for extract in (extract_gsm8k, extract_math, extract_number):
        found = extract(text)
        assert found is None or found
        assert same_answer(found, found) == (found is not None)
    assert same_answer(text, other) == same_answer(other, text)
    assert same_answer(text, text) == bool(text.strip())


@unhurried
@given(number=st.integers(), words=st.text(st.characters(exclude_characters="#"), max_size=20))
def test_numbers_come_back(number, words):
    for shown in (str(number), f"{number:,}", f"${number:,}", f"{number}.00"):
        assert same_answer(extract_gsm8k(f"{words}\n#### {shown}"), str(number))
        assert same_answer(extract_math(f"{words}\\boxed{{{shown}}}"), str(number))
    assert extract_number(f"{words} {number:,}.") == str(number)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 100_000,
        "1,111" * 20_000,
        "####" + " $" * 50_000,
        "\\boxed{" * 5_000,
        "a " * 50_000,
        "\\text{" * 10_000,
        "\\frac" * 20_000,
        "5 " + "cm " * 20_000 + "7",
        " " * 100_000,
    ],
    ids=lambda text: text[:8],
)
def test_long_text_takes_no_time(text):
    for extract in (extract_gsm8k, extract_math, extract_number):
        extract(text)
    assert same_answer(text, text) == bool(text.strip())
