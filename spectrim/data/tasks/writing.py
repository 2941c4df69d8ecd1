"""Write Python examples as a file that a recipe can name."""

from __future__ import annotations

import json
from pathlib import Path

from spectrim.data.tasks.loading import Task, load_task
from spectrim.runtime.files import write_text


def write_task(task: Task, path: Path) -> int:
    """Write prompts and answers of an iterable or callable as JSON lines; return how many.

    Name the file in `TaskRecipe(data=...)`: a run then records its data and can be resumed.
    Raises InputError without examples, and if the file cannot be written.
    """
    examples = load_task(task)
    lines = [json.dumps({"prompt": e.prompt, "answer": e.answer}) for e in examples]
    write_text(path, "\n".join(lines) + "\n")
    return len(examples)
