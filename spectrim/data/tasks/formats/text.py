"""Plain text: each document of a data source is an answer to an empty prompt."""

from __future__ import annotations

from collections.abc import Iterator

from spectrim.data import SOURCES, open_documents
from spectrim.data.conversation import Conversation
from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.settings import TaskSettings
from spectrim.errors import InputError

FORM = "any text that --data takes, text:PATH.jsonl:FIELD for a field of JSON lines"
COMMAND = "spectrim compress MODEL -o OUT --recipe task --task text:corpus.txt"


def matches(place: str) -> bool:
    return any(SOURCES.get(name).matches(place) for name in SOURCES.names())


def examples(place: str, settings: TaskSettings) -> Iterator[TaskExample]:
    """Return texts as answers without prompts. Raises InputError, also for prompt settings."""
    if settings.template or settings.prompt_field:
        raise InputError("plain text has no prompts; leave template and prompt_field out")
    for number, document in enumerate(open_documents(place, settings.answer_field), start=1):
        if document is None:
            continue
        if isinstance(document, Conversation):
            raise InputError(
                f"{document.where} is a conversation; expected text, or fields of a prompt and "
                "an answer"
            )
        try:
            yield TaskExample("", document)
        except InputError as error:
            raise InputError(f"'{place}' document {number}: {error}") from error
