"""Text that an elastic model writes at the size that is looked at, token by token."""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedModel

from spectrim.checkpoint import resize
from spectrim.errors import InputError, SpectrimError
from spectrim.evaluation.tasks.generation import continue_prompt

NEW_TOKENS = 64
"""The most tokens of a text."""


@dataclass(frozen=True)
class Writing:
    """A continuation of `prompt` at `budget` as far as it is written.

    Attributes:
        number: of the request, from 1; 0 before the first.
        message: why it failed.
    """

    number: int = 0
    status: Literal["idle", "running", "done", "failed"] = "idle"
    budget: float = 0.0
    prompt: str = ""
    text: str = ""
    message: str = ""


class Writer:
    """Writes one text at a time; a new request ends the one before it.

    The model is resized by the one thread that also runs it: downwards at once, upwards from
    its file. Requests that come while it works replace one another.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any):
        self._model = model
        self._tokenizer = tokenizer
        self._changed = threading.Condition()
        self._state = Writing()
        self._thread: threading.Thread | None = None
        self._done = 0
        self._ended = False

    @property
    def state(self) -> Writing:
        return self._state

    def start(self, budget: float, prompt: str) -> Writing:
        """Begin to continue `prompt` at `budget`. Raises InputError."""
        if not self._model.can_generate():
            raise InputError(f"{type(self._model).__name__} does not write text")
        if not prompt:
            raise InputError("enter a prompt; the text continues it")
        with self._changed:
            number = self._state.number + 1
            self._state = Writing(number, "running", budget, prompt)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
            self._changed.notify()
        return self._state

    def stop(self) -> None:
        """End what is being written, and the thread."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                asked = self._state
            if self._ended:
                return
            self._write(asked)
            self._done = asked.number

    def _has_work(self) -> bool:
        return self._ended or self._state.number > self._done

    def _write(self, asked: Writing) -> None:
        def show(text: str) -> bool:
            return self._put(replace(asked, text=text))

        try:
            resize(self._model, asked.budget)
            if show(""):
                text = continue_prompt(
                    self._model, self._tokenizer, asked.prompt, NEW_TOKENS, show
                )
                self._put(replace(asked, status="done", text=text))
        except SpectrimError as error:
            self._put(replace(asked, status="failed", message=str(error)))
        except Exception as error:  # the thread's only way to tell
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            self._put(replace(asked, status="failed", message=message))

    def _put(self, state: Writing) -> bool:
        """Publish a state unless another request has come; return whether it is wanted."""
        with self._changed:
            wanted = not self._ended and self._state.number == state.number
            if wanted:
                self._state = state
            return wanted
