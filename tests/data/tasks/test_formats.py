"""Each format gives its examples, and each bad input its own clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spectrim.data.tasks import FORMATS, TaskExample, TaskSettings, load_task
from spectrim.errors import InputError

texts = st.text(st.characters(exclude_categories=["Cs"]))
unhurried = settings(deadline=None)  # machines are shared
WORKED = "It takes 2/2=<<2/2=1>>1 bolt.\n#### 1,003"
QUESTION = '{"question": "How many?", "answer": %s}'


def write(path: Path, *records: Any) -> str:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Either no error at all or an InputError that says where."""
    try:
        yield
    except InputError as error:
        if place not in str(error):
            raise AssertionError(f"the error does not name {place}") from error


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


def test_every_format_says_what_to_type() -> None:
    assert FORMATS.names() == ["arithmetic", "gsm8k", "jsonl", "math", "text"]
    for name in FORMATS.names():
        assert FORMATS.get(name).FORM
        assert FORMATS.summary(name)


class TestJsonLines:
    @unhurried
    @given(pairs=st.lists(st.tuples(texts, texts), min_size=1), ascii_only=st.booleans())
    def test_any_text_comes_back_or_is_refused(
        self, scratch: Path, pairs: list[tuple[str, str]], ascii_only: bool
    ) -> None:
        records = [
            json.dumps({"prompt": p, "answer": a}, ensure_ascii=ascii_only) for p, a in pairs
        ]
        spec = write(scratch / "any.jsonl", *records)
        if all(answer.strip() for _, answer in pairs):
            found = load_task(spec)
            assert [e.prompt + e.answer for e in found] == [p + a for p, a in pairs]
            assert all(not e.prompt.endswith(" ") and e.final is None for e in found)
        else:
            with pytest.raises(InputError, match=r"line .*the answer is empty"):
                load_task(spec)

    @unhurried
    @given(content=st.binary(max_size=200))
    def test_any_bytes_give_examples_or_an_input_error(
        self, scratch: Path, content: bytes
    ) -> None:
        path = scratch / "bytes.jsonl"
        path.write_bytes(content)
        with naming(str(path)):
            assert load_task(str(path))

    @unhurried
    @given(
        record=st.dictionaries(
            st.sampled_from(["prompt", "answer", "question", "output", "input", "x"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | texts,
                lambda inner: st.lists(inner, max_size=2),
                max_leaves=3,
            ),
        )
    )
    def test_any_values_give_examples_or_an_input_error(
        self, scratch: Path, record: dict[str, Any]
    ) -> None:
        spec = write(scratch / "values.jsonl", record)
        with naming("line 1"):
            (example,) = load_task(spec)
            assert example.answer.endswith(str(record["answer"]))

    @pytest.mark.parametrize(
        ("record", "prompt", "answer"),
        [
            ({"prompt": "2+2=", "answer": 4}, "2+2=", "4"),
            ({"prompt": "2+2= ", "completion": "4"}, "2+2=", " 4"),
            ({"prompt": 7, "response": 0.5}, "7", "0.5"),
            ({"question": "Q?", "answer": "A"}, "Question: Q?\nAnswer:", " A"),
            ({"instruction": "Do", "output": "did"}, "Do\n", "did"),
            ({"instruction": "Do", "input": "", "output": "did"}, "Do\n", "did"),
            ({"instruction": "Do", "input": "it", "output": "did"}, "Do\nit\n", "did"),
        ],
    )
    def test_common_pairs_are_found(
        self, tmp_path: Path, record: dict[str, Any], prompt: str, answer: str
    ) -> None:
        spec = write(tmp_path / "a.json", record)
        assert load_task(spec) == [TaskExample(prompt, answer)]
        assert load_task(f"jsonl:{spec}") == [TaskExample(prompt, answer)]

    def test_named_fields_and_template(self, tmp_path: Path) -> None:
        spec = write(tmp_path / "a.jsonl", {"q": "{x} why", "a": "so", "prompt": "no", "n": 3})
        fields = {"prompt_field": "q", "answer_field": "a"}
        assert load_task(spec, TaskSettings(**fields)) == [TaskExample("{x} why", "so")]
        for answer in ("answer", "a"):
            template = f"{{n}}) {{prompt}}  {{{answer}}}"
            (found,) = load_task(spec, TaskSettings(**fields, template=template))
            assert found == TaskExample("3) {x} why", "  so")
        (found,) = load_task(spec, TaskSettings(**fields, template="{q}:"))
        assert found == TaskExample("{x} why:", "so")

    @pytest.mark.parametrize(
        ("template", "message"),
        [("{prompt}{answer}!", "goes on after the answer"), ("{title}{answer}", "'title'")],
    )
    def test_bad_template(self, tmp_path: Path, template: str, message: str) -> None:
        spec = write(tmp_path / "a.jsonl", {"prompt": "p", "answer": "a"})
        with pytest.raises(InputError, match=message):
            load_task(spec, TaskSettings(template=template))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"prompt": "b"', "line 2 is not JSON"),
            ("[1]", "line 2 is a JSON list; expected one object per line"),
            ('{"prompt": "b"}', "line 2 has no field 'answer'; its fields: prompt"),
            ('{"prompt": "b", "answer": null}', "line 2: field 'answer' is NoneType"),
            ('{"prompt": "b", "answer": true}', "line 2: field 'answer' is bool"),
            ('{"prompt": ["b"], "answer": "a"}', "line 2: field 'prompt' is list"),
            ('{"prompt": "b", "answer": " "}', "line 2: the answer is empty"),
            (r'{"prompt": "\ud800", "answer": "a"}', "line 2: the prompt holds half a surr"),
        ],
    )
    def test_bad_line(self, tmp_path: Path, line: str, message: str) -> None:
        spec = write(tmp_path / "a.jsonl", {"prompt": "a", "answer": "b"}, line)
        with pytest.raises(InputError, match=message):
            load_task(spec)
        assert load_task(spec, TaskSettings(limit=1)) == [TaskExample("a", "b")]

    def test_unknown_fields_are_listed(self, tmp_path: Path) -> None:
        spec = write(tmp_path / "a.jsonl", {"title": "a", "body": "b"})
        with pytest.raises(
            InputError, match=r"fields: body, title; name both.*question/answer"
        ):
            load_task(spec)
        with pytest.raises(InputError, match="cannot tell"):
            load_task(spec, TaskSettings(prompt_field="title"))

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_empty_file(self, tmp_path: Path, content: str) -> None:
        with pytest.raises(InputError, match=r"a\.jsonl' holds no example"):
            load_task(write(tmp_path / "a.jsonl", content))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            load_task(str(tmp_path / "none.jsonl"))


class TestGsm8k:
    def test_question_and_final(self, tmp_path: Path) -> None:
        spec = "gsm8k:" + write(tmp_path / "a.jsonl", {"question": "Q?", "answer": WORKED})
        expected = TaskExample("Question: Q?\nAnswer:", " " + WORKED, "1003")
        assert load_task(spec) == [expected]

    def test_own_template(self, tmp_path: Path) -> None:
        spec = "gsm8k:" + write(tmp_path / "a.jsonl", {"question": "Q?", "answer": WORKED})
        assert load_task(spec, TaskSettings(template="{question}\n{answer}")) == [
            TaskExample("Q?\n", WORKED, "1003")
        ]

    @pytest.mark.parametrize("answer", ['"3"', '"#### none"', "3"])
    def test_answer_without_result(self, tmp_path: Path, answer: str) -> None:
        spec = write(tmp_path / "a.jsonl", QUESTION % answer)
        with pytest.raises(InputError, match=r"line 1: the answer gives no result; .*####"):
            load_task(f"gsm8k:{spec}")

    @pytest.mark.parametrize(
        ("place", "asked"),
        [
            ("hub:openai/gsm8k:main:train", (("openai/gsm8k", "main"), "train")),
            ("hub:gsm8k:test", (("gsm8k", None), "test")),
            ("hf:openai/gsm8k/main:test", (("openai/gsm8k", "main"), "test")),
        ],
    )
    def test_from_the_hub(
        self, monkeypatch: pytest.MonkeyPatch, place: str, asked: tuple[Any, str]
    ) -> None:
        datasets = pytest.importorskip("datasets")
        calls = []

        def rows(*names: object, split: str, streaming: bool) -> list[dict[str, str]]:
            calls.append((names, split))
            return [{"question": "Q?", "answer": WORKED}, {"question": "R?"}]

        monkeypatch.setattr(datasets, "load_dataset", rows)
        (example,) = load_task(f"gsm8k:{place}", TaskSettings(limit=1))
        assert example.final == "1003"
        assert calls == [asked]
        with pytest.raises(InputError, match="row 2 has no field 'answer'"):
            load_task(f"gsm8k:{place}")

    @pytest.mark.parametrize("place", ["hub:", "hub:a", "hub:a::test", "hub:a:b:c:d"])
    def test_bad_hub_spec(self, place: str) -> None:
        with pytest.raises(InputError, match=r"expected hub:NAME\[:CONFIG\]:SPLIT"):
            load_task(f"gsm8k:{place}")


class TestMath:
    SOLVED = "So $x=\\frac{1}{2}$, giving $\\boxed{\\frac{1}{2}}$."

    def test_json_lines(self, tmp_path: Path) -> None:
        spec = write(tmp_path / "a.jsonl", {"problem": "P", "solution": self.SOLVED})
        expected = TaskExample("Problem: P\nSolution:", " " + self.SOLVED, "\\frac{1}{2}")
        assert load_task(f"math:{spec}") == [expected]

    def test_official_directory_in_order(self, tmp_path: Path) -> None:
        for place in ("algebra/10", "algebra/2", "counting/1"):
            path = tmp_path / f"{place}.json"
            path.parent.mkdir(exist_ok=True)
            record = {"problem": place, "level": "Level 1", "solution": self.SOLVED}
            path.write_text(json.dumps(record, indent=1))
        prompts = [example.prompt for example in load_task(f"math:{tmp_path}")]
        assert [p.split()[1] for p in prompts] == ["algebra/2", "algebra/10", "counting/1"]

    def test_directory_without_problems(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no \.json file"):
            load_task(f"math:{tmp_path}")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{", r"1\.json' is not JSON .*; expected one object$"),
            (b"\xff", "not UTF-8"),
            (b'{"problem": "P"}', "no field 'solution'"),
            (b'{"problem": "P", "solution": "5"}', r"no result; expected \\boxed"),
        ],
    )
    def test_bad_file(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "1.json").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_task(f"math:{tmp_path}")


class TestTextAndArithmetic:
    def test_documents_are_answers(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one<|endoftext|>two\n")
        found = [TaskExample("", "one"), TaskExample("", "two")]
        assert load_task(str(tmp_path / "a.txt")) == found
        assert load_task(f"text:{tmp_path / 'a.txt'}") == found

    def test_one_field_of_json_lines(self, tmp_path: Path) -> None:
        spec = write(tmp_path / "a.jsonl", {"body": "b"})
        assert load_task(f"text:{spec}:body") == [TaskExample("", "b")]
        settings = TaskSettings(answer_field="body")
        assert load_task(f"text:{spec}", settings) == [TaskExample("", "b")]

    @pytest.mark.parametrize("given", [{"template": "{prompt}"}, {"shots": 1}])
    def test_text_has_no_prompts(self, tmp_path: Path, given: dict[str, Any]) -> None:
        (tmp_path / "a.txt").write_text("one<|endoftext|>two\n")
        with pytest.raises(InputError, match=r"no prompts|shots need prompts"):
            load_task(str(tmp_path / "a.txt"), TaskSettings(**given))

    def test_arithmetic(self) -> None:
        found = load_task("arithmetic:train:6")
        assert len(found) == 6
        assert found == load_task("arithmetic:train:6:0")
        assert found != load_task("arithmetic:train:6:1")
        assert all(example.final for example in found)

    @pytest.mark.parametrize(
        "place", ["", "train", "train:", "train:0", "train:x", "train:1:2:3"]
    )
    def test_bad_arithmetic(self, place: str) -> None:
        with pytest.raises(InputError, match="expected arithmetic:SPLIT:COUNT"):
            load_task(f"arithmetic:{place}")

    def test_fields_make_no_sense(self) -> None:
        with pytest.raises(InputError, match="no fields"):
            load_task("arithmetic:train:1", TaskSettings(template="{prompt}"))


class TestPython:
    PAIRS = (("a", "b"), ("c", "d", "e"), TaskExample("f", "g"))
    FOUND = (TaskExample("a", "b"), TaskExample("c", "d", "e"), TaskExample("f", "g"))

    def test_iterable_and_callable(self) -> None:
        assert load_task(self.PAIRS) == list(self.FOUND)
        assert load_task(lambda: iter(self.PAIRS)) == list(self.FOUND)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([], "holds no example"),
            ([("a", "")], "example 1: the answer is empty"),
            ([("a", "b"), "cd"], "example 2 is str, expected a TaskExample"),
            ([("a", 3)], "example 1: the answer is int, expected a string"),
            ([("a",)], "example 1 is tuple"),
        ],
    )
    def test_bad_examples(self, given: list[Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_task(given)

    def test_template_makes_no_sense(self) -> None:
        with pytest.raises(InputError, match="stand as they are"):
            load_task(self.PAIRS, TaskSettings(template="x"))


class TestShotsAndLimit:
    PAIRS = tuple((f"q{n}:", f" a{n}") for n in range(5))

    def test_the_first_examples_are_shown_before_the_others(self) -> None:
        found = load_task(self.PAIRS, TaskSettings(shots=2, limit=2))
        before = "q0: a0\n\nq1: a1\n\n"
        assert found == [TaskExample(f"{before}q{n}:", f" a{n}") for n in (2, 3)]

    def test_no_more_is_read_than_asked_for(self) -> None:
        def endless():
            while True:
                yield "q", "a"

        assert len(load_task(endless, TaskSettings(limit=3, shots=1))) == 3

    def test_too_few_for_the_shots(self) -> None:
        with pytest.raises(InputError, match="holds 5 examples, expected more than the 5"):
            load_task(self.PAIRS, TaskSettings(shots=5))

    @pytest.mark.parametrize("given", [{"shots": -1}, {"limit": 0}])
    def test_bad_settings(self, given: dict[str, int]) -> None:
        with pytest.raises(InputError, match="expected"):
            TaskSettings(**given)


class TestUnusableSpecs:
    @pytest.mark.parametrize("spec", ["nothing", "gsm9k:a.b", "", "hub:openai/gsm8k:main:x"])
    def test_the_forms_are_listed(self, spec: str) -> None:
        with pytest.raises(InputError, match=r"cannot tell.*gsm8k:PATH.*PATH\.txt"):
            load_task(spec)

    @unhurried
    @given(spec=texts)
    @example(spec="~nobody")
    @example(spec="long" * 2000)
    @example(spec="a\0b")
    def test_any_spec_is_an_input_error(self, spec: str) -> None:
        with pytest.raises(InputError):
            load_task(f"math:{spec}.nowhere")
        with pytest.raises(InputError):
            load_task(f"{spec}.nowhere")
