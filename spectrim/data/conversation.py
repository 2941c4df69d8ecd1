"""Conversations: documents that the tokenizer's chat template turns into text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrim.errors import InputError

FIELDS = ("messages", "conversations")
"""Fields of a record that may hold a conversation, unless another is named."""
_CONTENTS = {"content", "tool_calls"}
"""A message that calls tools may have no content."""
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """Messages `{"role": ..., "content": ...}` in order; `where` they come from, for errors."""

    messages: tuple[dict[str, Any], ...]
    where: str

    def render(self, tokenizer: Any) -> str:
        """Return the text of the chat template. Raises InputError where there is none."""
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                f"{self.where} is a conversation, and the tokenizer has no chat template; give "
                "the template (tokenizer.chat_template), or a field that holds text"
            )
        try:
            return tokenizer.apply_chat_template(list(self.messages), tokenize=False)
        except Exception as error:  # templates are programs and raise what they like
            raise InputError(
                f"{self.where}: the tokenizer's chat template refuses the conversation "
                f"({type(error).__name__}: {error})"
            ) from error


def read_conversation(value: list[Any], where: str) -> Conversation:
    """Read `role`/`content` or `from`/`value` messages. Raises InputError naming `where`."""
    if not value:
        raise InputError(f"{where}: the conversation has no message")
    messages = [_message(one, f"{where}, message {n}") for n, one in enumerate(value, 1)]
    return Conversation(tuple(messages), where)


def _message(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict) and {"from", "value"} <= value.keys():
        role, content = value["from"], value["value"]
    elif isinstance(value, dict) and "role" in value and _CONTENTS & value.keys():
        role, content = value["role"], value.get("content")
    else:
        shown = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{where} has {shown}, expected role and content (or from and value)")
    if not isinstance(role, str):
        raise InputError(f"{where}: the role is {type(role).__name__}, expected a string")
    content = _text_of(content, where)
    rest = {k: v for k, v in value.items() if k not in ("from", "value", "role", "content")}
    return {k: v for k, v in rest.items() if v is not None} | {
        "role": _ROLES.get(role, role),
        "content": content,
    }


def _text_of(content: Any, where: str) -> str:
    """Return the text of a message; of a list of parts that of all, without images."""
    if isinstance(content, list):
        return "".join(_text_of(_of_part(part), where) for part in content)
    if not isinstance(content, str | None):
        raise InputError(f"{where}: the content is {type(content).__name__}, expected a string")
    return content or ""


def _of_part(part: Any) -> Any:
    return part.get("text") if isinstance(part, dict) else part
