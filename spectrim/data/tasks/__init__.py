"""Tasks: prompts with answers, read from files or generated."""

from spectrim.data.tasks.answer_parsing import (
    extract_gsm8k,
    extract_math,
    extract_number,
    normalize_answer,
    same_answer,
)
from spectrim.data.tasks.example import TaskExample
from spectrim.data.tasks.loading import FORMATS, Task, load_task
from spectrim.data.tasks.rows import (
    RowSettings,
    TaskBatch,
    TaskRows,
    calibration_blocks,
    scored_logits,
    task_loss,
    task_rows,
)
from spectrim.data.tasks.settings import TaskSettings
from spectrim.data.tasks.writing import write_task

__all__ = [
    "FORMATS",
    "RowSettings",
    "Task",
    "TaskBatch",
    "TaskExample",
    "TaskRows",
    "TaskSettings",
    "calibration_blocks",
    "extract_gsm8k",
    "extract_math",
    "extract_number",
    "load_task",
    "normalize_answer",
    "same_answer",
    "scored_logits",
    "task_loss",
    "task_rows",
    "write_task",
]
