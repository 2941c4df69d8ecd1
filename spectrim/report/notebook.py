"""The report page of a result in memory, shown inside a notebook."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spectrim.pipeline.compress import CompressionResult
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.report.load import compare, facts_of
from spectrim.report.page import report_page
from spectrim.report.pruning_figure import with_prunings
from spectrim.report.summary import summary
from spectrim.runtime.files import write_text

HEIGHT = 720
"""Pixels of the frame in a notebook."""


class ReportPage:
    """A self-contained HTML page; a notebook shows it where it is the value of a cell."""

    def __init__(self, html: str, line: str):
        self.html = html
        self._line = line

    def save(self, path: str | Path) -> Path:
        """Write the page. Raises InputError where it cannot be written."""
        write_text(Path(path), self.html)
        return Path(path)

    def __repr__(self) -> str:
        return f"ReportPage({self._line})"

    def _repr_html_(self) -> str:
        """Return a frame of its own, so that neither the page's style nor its script leaks."""
        return (
            f'<iframe srcdoc="{escape(self.html)}" width="100%" height="{HEIGHT}" '
            'style="border:0"></iframe>'
        )


def make_report(
    model: PreTrainedModel, tokenizer: Any, result: CompressionResult
) -> ReportPage:
    """Measure a result of `compress` beside its original, and return the page about it.

    The models are compared on calibration tokens and on a few prompts.
    """
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    original = LoadedModel(model, tokenizer, model.dtype, Path(name).name)
    facts = with_prunings(facts_of(original, result), result.prune_steps or "")
    facts = compare(facts, original, result.model, result.recipe)
    return ReportPage(report_page(facts), summary(facts))
