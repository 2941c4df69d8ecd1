"""An elastic checkpoint at any of its sizes: figures, text that it writes, and export."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spectrim import checkpoint
from spectrim.errors import InputError
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.report.compare import draw_prompts
from spectrim.report.facts import FACTS_FILE, LayerFacts, Part, Point, ReportData, cell_of
from spectrim.report.live.job import Job
from spectrim.report.live.session import Places, page_values
from spectrim.report.live.writer import Writer
from spectrim.report.load import facts_in
from spectrim.report.page import report_page
from spectrim.runtime.context import ProgressBar

_POINTS = 51
"""Of the curve of predicted loss."""


class ElasticSession:
    """A session on one elastic checkpoint in a directory, loaded at its largest size."""

    action = "Export this size"

    def __init__(self, source: LoadedModel, places: Places):
        self.source = source
        self.places = places
        self.job = Job()
        self.sizes = checkpoint.elastic_sizes(source.name)
        self.writer = Writer(source.model, source.tokenizer)
        self._stored = facts_in(Path(source.name))
        self._held = self._held_weights()

    @property
    def percents(self) -> tuple[int, int]:
        """Return the ends of the slider, whole percents within the sizes."""
        smallest, largest = 100 * self.sizes.smallest, 100 * self.sizes.largest
        return math.ceil(smallest - 1e-6), math.floor(largest + 1e-6)

    @cached_property
    def prompt(self) -> str:
        """Return the prompt to begin with: one of the report's, else drawn from the model."""
        prompts = [text.prompt for text in self._stored.texts]
        prompts = prompts or draw_prompts(self.source.model, self.source.tokenizer)
        return prompts[0] if prompts else ""

    @cached_property
    def facts(self) -> ReportData:
        """Return the facts at the largest size, with the curve of all of them."""
        return self._facts(self.sizes.largest)

    def answer(self, budget: float) -> dict[str, Any]:
        """Return the page's values at `budget`. Raises InputError."""
        return page_values(self._facts(budget))

    def save(self, budget: float) -> Path:
        raise InputError("the sizes of this checkpoint are planned; export one of them")

    def start(self, budget: float) -> None:
        """Export the size in the background. Raises InputError."""
        output = self.places.output
        if output is None:
            raise InputError("no output directory; start explore with -o OUT")
        checkpoint.check_output(output, self.places.overwrite)
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

    def _facts(self, budget: float) -> ReportData:
        sizes, stored = self.sizes, self._stored
        ranks = sizes.ranks(budget)
        layers = [self._layer(layer, ranks[layer.name]) for layer in stored.layers]
        return replace(
            stored,
            layer=sizes.kind,
            budget=budget,
            kept=sizes.cost(ranks) / sizes.dense_weights,
            predicted_loss=sizes.loss(budget),
            layers=layers,
            curve=self._curve,
            parts=self._parts(layers),
            texts=[],
            result=None,
            ratios=[],
        )

    @cached_property
    def _curve(self) -> list[Point]:
        found = []
        for budget in np.linspace(self.sizes.smallest, self.sizes.largest, _POINTS).tolist():
            budget = min(budget, self.sizes.largest)
            kept = self.sizes.cost(self.sizes.ranks(budget)) / self.sizes.dense_weights
            found.append(Point(kept, self.sizes.loss(budget), budget))
        return found

    def _layer(self, layer: LayerFacts, rank: int | None) -> LayerFacts:
        weights = self.sizes.weights(layer.name, rank)
        return replace(layer, kind=self.sizes.kind, rank=rank, weights=weights, loss=None)

    def _held_weights(self) -> dict[str, int]:
        """Return the weights of each layer that the stored facts count in their bytes."""
        if (Path(self.source.name) / FACTS_FILE).is_file():
            return {name: layer.stored for name, layer in self.sizes.layers.items()}
        return {layer.name: layer.weights for layer in self._stored.layers}

    def _parts(self, layers: list[LayerFacts]) -> list[Part]:
        """Return the bytes by part, where layers have other weights than the file holds."""
        less: dict[str, int] = {}
        for layer in layers:
            part = cell_of(layer.name).projection
            saved = self._held[layer.name] - layer.weights
            less[part] = less.get(part, 0) + saved * self._stored.itemsize
        return [
            Part(part.name, part.dense, part.stored - less.get(part.name, 0))
            for part in self._stored.parts
        ]
