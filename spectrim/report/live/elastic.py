"""An elastic checkpoint at any of its sizes: figures, text that it writes, and export."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

from spectrim import checkpoint
from spectrim.errors import InputError
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.report.compare import draw_prompts
from spectrim.report.facts import ReportData
from spectrim.report.live.job import Job
from spectrim.report.live.session import Places, page_values
from spectrim.report.live.writer import Writer
from spectrim.report.load import facts_in
from spectrim.report.page import report_page
from spectrim.report.size_facts import SizeFacts
from spectrim.runtime.context import ProgressBar


class ElasticSession:
    """A session on one elastic checkpoint in a directory, loaded at its largest size."""

    action = "Export this size"

    def __init__(self, source: LoadedModel, places: Places):
        self.source = source
        self.places = places
        self.job = Job()
        self.writer = Writer(source.model, source.tokenizer)
        self._pages = SizeFacts(Path(source.name))
        self.sizes = self._pages.sizes

    @property
    def percents(self) -> tuple[int, int]:
        """Return the ends of the slider, whole percents within the sizes."""
        smallest, largest = 100 * self.sizes.smallest, 100 * self.sizes.largest
        return math.ceil(smallest - 1e-6), math.floor(largest + 1e-6)

    @cached_property
    def prompt(self) -> str:
        """Return the prompt to begin with: one of the report's, else drawn from the model."""
        prompts = [text.prompt for text in self._pages.stored.texts]
        prompts = prompts or draw_prompts(self.source.model, self.source.tokenizer)
        return prompts[0] if prompts else ""

    @cached_property
    def facts(self) -> ReportData:
        """Return the facts at the largest size, with the curve of all of them."""
        return self._pages.at(self.sizes.largest)

    def answer(self, budget: float) -> dict[str, Any]:
        """Return the page's values at `budget`. Raises InputError."""
        return page_values(self._pages.at(budget))

    def save(self, budget: float) -> Path:
        raise InputError("the sizes of this checkpoint are planned; export one of them")

    def start(self, budget: float) -> None:
        """Export the size in the background. Raises InputError."""
        output = self.places.free_output()
        self.sizes.ranks(budget)
        self.job.start(lambda track: self._export(budget, output, track))

    def report(self) -> str:
        """Return the page of the exported size. Raises InputError before there is one."""
        output = self.places.output
        if output is None or self.job.state.status != "done":
            raise InputError("no size has been exported yet")
        return report_page(facts_in(output))

    def close(self) -> None:
        """End the text that is being written, and the export."""
        self.writer.stop()
        self.job.stop()
        self.job.wait()

    def _export(self, budget: float, output: Path, track: ProgressBar) -> str:
        for _ in track(range(1), f"exporting {budget:.0%}", 1):
            checkpoint.export_size(
                self.source.name, output, {"budget": budget}, self.places.overwrite
            )
        return f"saved to {output}"
