"""Tasks of lm-evaluation-harness on a model in memory, dense or compressed (extra `eval`).

    figure("TASK METRIC") = mean over the task's examples,   "... stderr" its standard error

Custom task files (`path`) need no network: a YAML file with `dataset_path: json` and
`data_files`. Its `wikitext` is perplexity per word; `evaluation.perplexity` is per token.
Source: Gao et al., https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spectrim.errors import InputError

_BOOTSTRAPS = 100
"""For the metrics whose standard error has no closed form."""
_LOGGERS = ("lm_eval", "datasets")


@dataclass(frozen=True)
class HarnessSettings:
    """Settings of a run.

    Attributes:
        path: a directory of task files.
        shots: examples before each question, None for the task's own.
        limit: examples per task.
        batch: requests per batch.
    """

    path: Path | None = None
    shots: int | None = None
    limit: int | None = None
    batch: int = 8

    def __post_init__(self) -> None:
        if min(self.batch, 1 if self.limit is None else self.limit) < 1:
            raise InputError(
                f"batch and limit must be at least 1, got {self.batch}, {self.limit}"
            )
        if self.path is not None and not self.path.is_dir():
            raise InputError(f"--task-path {self.path} is not a directory of task files")


def evaluate_harness(
    model: PreTrainedModel,
    tokenizer: Any,
    tasks: Sequence[str],
    settings: HarnessSettings = HarnessSettings(),
) -> dict[str, float]:
    """Return every metric of the named tasks, groups or patterns.

    Raises InputError if the harness is missing, for an unknown task, and for unavailable data.
    """
    evaluate, wrapper, manager = _library()
    with _quiet(), _without_git():
        known = _manager(manager, tasks, settings.path)
        wrapped = wrapper(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch)
        try:
            found = evaluate(
                model=wrapped,
                tasks=list(tasks),
                task_manager=known,
                num_fewshot=settings.shots,
                limit=settings.limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{', '.join(tasks)}: {type(error).__name__}: {error}") from error
    return figures(found["results"])


def figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Map `{"arc": {"acc,none": 0.3}}` to `{"arc acc": 0.3}`; filters except "none" stay."""
    flat: dict[str, float] = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if not comma or not isinstance(value, (int, float)):
                continue
            place = "" if filtered == "none" else f" ({filtered})"
            name = metric.removesuffix("_stderr")
            end = " stderr" if name != metric else ""
            flat[f"{task} {name}{place}{end}"] = float(value)
    return flat


def _library() -> tuple[Any, Any, Any]:
    """Return `simple_evaluate`, `HFLM` and `TaskManager`. Raises InputError if missing."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is not installed ({error}): pip install 'spectrim[eval]'"
        ) from error
    return simple_evaluate, HFLM, TaskManager


def _manager(manager: Any, tasks: Sequence[str], path: Path | None) -> Any:
    """Return a manager of all `tasks`, from `path` alone if that is enough.

    The harness's own list takes seconds to read. Raises InputError naming an unknown task.
    """
    if path is not None:
        own = manager(include_path=str(path), include_defaults=False)
        if all(own.match_tasks([task]) for task in tasks):
            return own
    every = manager(include_path=None if path is None else str(path))
    for task in tasks:
        if not every.match_tasks([task]):
            close = ", ".join(difflib.get_close_matches(task, every.all_tasks, 3)) or "none"
            raise InputError(
                f"unknown harness task '{task}'; similar names: {close}; "
                "`lm-eval ls tasks` lists all, --task-path adds your own"
            )
    return every


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log errors only, and show progress bars only on a terminal."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    unseen = contextlib.nullcontext() if sys.stderr.isatty() else _unseen()
    try:
        with unseen:
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _without_git() -> Iterator[None]:
    """Keep the harness from running git, which complains outside a repository."""
    from lm_eval import evaluator

    asked = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asked


def _unseen() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stderr(io.StringIO())
