"""The facts of one size of an elastic checkpoint: its layers, bytes and prediction."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from spectrim.checkpoint import elastic_sizes
from spectrim.report.facts import FACTS_FILE, LayerFacts, Part, Point, ReportData, cell_of
from spectrim.report.load import facts_in

_POINTS = 51
"""Of the curve of predicted loss."""


class SizeFacts:
    """The facts of every size of the checkpoint in a directory.

    Raises InputError for a checkpoint that has one size.

    Attributes:
        sizes: what can be cut.
        stored: the facts that were saved with it, of its largest size.
    """

    def __init__(self, directory: Path):
        self.sizes = elastic_sizes(directory)
        self.stored = facts_in(directory)
        counted = (directory / FACTS_FILE).is_file()  # else those of the loaded model
        held = {name: self.sizes.held(name) for name in self.sizes.layers}
        self._held = held if counted else {x.name: x.weights for x in self.stored.layers}

    def at(self, budget: float) -> ReportData:
        """Return the facts at `budget`, none of them measured. Raises InputError."""
        sizes, ranks = self.sizes, self.sizes.ranks(budget)
        layers = [self._layer(layer, ranks[layer.name]) for layer in self.stored.layers]
        return replace(
            self.stored,
            layer=sizes.kind,
            budget=budget,
            kept=sizes.cost(ranks) / sizes.dense_weights,
            predicted_loss=sizes.loss(budget),
            layers=layers,
            curve=self._curve,
            probes=[],
            parts=self._parts(layers),
            texts=[],
            result=None,
            agreement=None,
            loss_increase=None,
            original_perplexity=None,
            ratios=[],
            score=None,
        )

    @cached_property
    def _curve(self) -> list[Point]:
        found = []
        for budget in np.linspace(self.sizes.smallest, self.sizes.largest, _POINTS).tolist():
            kept = self.sizes.cost(self.sizes.ranks(budget)) / self.sizes.dense_weights
            found.append(Point(kept, self.sizes.loss(budget), budget))
        return found

    def _layer(self, layer: LayerFacts, rank: int | None) -> LayerFacts:
        weights = self.sizes.weights(layer.name, rank)
        return replace(layer, kind=self.sizes.kind, rank=rank, weights=weights, loss=None)

    def _parts(self, layers: list[LayerFacts]) -> list[Part]:
        """Return the bytes by part, where layers have other weights than the file holds."""
        less: dict[str, int] = {}
        for layer in layers:
            part = cell_of(layer.name).projection
            saved = self._held[layer.name] - layer.weights
            less[part] = less.get(part, 0) + saved * self.stored.itemsize
        return [
            Part(part.name, part.dense, part.stored - less.get(part.name, 0))
            for part in self.stored.parts
        ]
