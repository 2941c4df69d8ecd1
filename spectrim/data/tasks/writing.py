"""Examples that Python gives, as a file that a recipe can name."""

from __future__ import annotations

import json
from pathlib import Path

from spectrim.data.tasks.loading import Task, load_task
from spectrim.runtime.files import write_text


def write_task(task: Task, path: Path) -> int:
    """Prompts and answers of an iterable, or of what a callable returns, as JSON lines.

    Give the file's name to `TaskRecipe(data=...)`: a run then says what it was made from, and
    can be continued. Returns how many. Raises InputError without examples, and when the place
    cannot be written.
    """
    examples = load_task(task)
    lines = [json.dumps({"prompt": e.prompt, "answer": e.answer}) for e in examples]
    write_text(path, "\n".join(lines) + "\n")
    return len(examples)
