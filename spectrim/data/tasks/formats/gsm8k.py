"""GSM8K: grade-school problems worked out in words, the result after `####`.

The calculator's marks (`<<48/2=24>>`) stay in the answers as the data gives them.
Source: Cobbe et al., 2021, arXiv:2110.14168.
"""

from __future__ import annotations

from collections.abc import Iterator

from spectrim.data.tasks.answer_parsing import extract_gsm8k
from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.formats._records import HUB_FORM, Layout, examples_of
from spectrim.data.tasks.settings import TaskSettings

FORM = f"gsm8k:PATH.jsonl or gsm8k:{HUB_FORM}"
COMMAND = "spectrim compress MODEL -o OUT --recipe task --task gsm8k:train.jsonl"
LAYOUT = Layout("question", "answer", "Question: {prompt}\nAnswer: {answer}")


def matches(place: str) -> bool:
    return False


def examples(place: str, settings: TaskSettings) -> Iterator[TaskExample]:
    """Return examples with the number after #### as `final`. Raises InputError without one."""
    return examples_of(place, LAYOUT.given(settings), extract_gsm8k, "#### and a number")
