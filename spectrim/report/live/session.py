"""A calibrated model that plans any budget, and saves or executes the plan."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from spectrim import checkpoint
from spectrim.errors import InputError
from spectrim.pipeline.compress import cut, finish
from spectrim.pipeline.loaded_model import LoadedModel
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition, Plan, make_plan, save_plan
from spectrim.report.collect import plan_facts, with_curves, with_planned_bytes
from spectrim.report.facts import PAGE_FILE, ReportData
from spectrim.report.live.job import Job
from spectrim.report.live.writer import Writer
from spectrim.report.rank_map import rank_map
from spectrim.report.summary import summary
from spectrim.report.write import OutputSpec, write_result
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import ProgressBar, RunContext


@dataclass(frozen=True)
class Places:
    """Directories of plans, the result and the cache; None: none is written."""

    plan: Path | None
    output: Path | None
    overwrite: bool = False
    cache: Cache = field(default_factory=lambda: Cache(None))

    def free_output(self) -> Path:
        """Return where the result goes. Raises InputError without one, or if it is taken."""
        if self.output is None:
            raise InputError("no output directory; start explore with -o OUT")
        checkpoint.check_output(self.output, self.overwrite)
        return self.output


class Session:
    """A session on one model. Raises InputError for a recipe whose curves are not losses."""

    action = "Compress"
    prompt = ""
    writer: Writer | None = None

    def __init__(
        self, source: LoadedModel, decomposition: Decomposition, recipe: Recipe, places: Places
    ):
        self.source = source
        self.decomposition = decomposition
        self.recipe = recipe
        self.places = places
        self.job = Job()
        self._planning = threading.Lock()
        self._plans: dict[float, Plan] = {}
        if not self.facts.curve:
            raise InputError(
                f"method '{recipe.method}' with layers '{recipe.layer}' predicts no loss to "
                "explore; choose another, or `spectrim compress` at a budget"
            )

    @property
    def percents(self) -> tuple[int, int]:
        """Return the ends of the slider."""
        return math.ceil(100 * self.facts.curve[0].kept), 100

    @cached_property
    def facts(self) -> ReportData:
        """Return the facts of the recipe's own budget, with the curve and the spectra."""
        facts = self._facts(self.plan(self.recipe.budget))
        return with_curves(facts, self.decomposition, self.recipe)

    def plan(self, budget: float) -> Plan:
        """Return the plan of a budget. Raises InputError if no plan meets it."""
        with self._planning:
            if budget not in self._plans:
                recipe = self.recipe.with_changes(budget=budget)
                self._plans[budget] = make_plan(self.decomposition, recipe.planning)
            return self._plans[budget]

    def answer(self, budget: float) -> dict[str, Any]:
        """Return the page's values for the plan at `budget`."""
        return page_values(self._facts(self.plan(budget)))

    def save(self, budget: float) -> Path:
        """Save the plan at `budget`. Raises InputError."""
        if self.places.plan is None:
            raise InputError("no file for plans; start explore with --plan FILE")
        save_plan(self.plan(budget), self.places.plan)
        return self.places.plan

    def start(self, budget: float) -> None:
        """Compress at `budget` in the background. Raises InputError."""
        output = self.places.free_output()
        plan = self.plan(budget)
        self.job.start(lambda track: self._compress(plan, output, track))

    def close(self) -> None:
        """End the compression that runs."""
        self.job.stop()
        self.job.wait()

    def _facts(self, plan: Plan) -> ReportData:
        facts = plan_facts(self.source.name, plan, self.recipe.at_budget(plan.budget))
        return with_planned_bytes(facts, self.source, self.recipe)

    def _compress(self, plan: Plan, output: Path, track: ProgressBar) -> str:
        context = RunContext(self.places.cache, track)
        steps = iter(track(range(3), "compressing", 3))
        next(steps)
        result = finish(
            self.source, cut(self.source, self.decomposition, plan, self.recipe), context
        )
        next(steps)
        next(steps)
        facts = write_result(self.source, result, OutputSpec(output, self.places.overwrite))
        return f"saved to {output}: {summary(facts)}"

    def report(self) -> str:
        """Return the page of the finished result. Raises InputError before there is one."""
        output = self.places.output
        if output is None or self.job.state.status != "done":
            raise InputError("nothing has been compressed yet")
        return (output / PAGE_FILE).read_text(encoding="utf-8")


def page_values(facts: ReportData) -> dict[str, Any]:
    """Return what the page shows of one size."""
    rows = rank_map(facts.layers).rows
    return {
        "budget": facts.budget,
        "kept": facts.kept,
        "loss": facts.predicted_loss,
        "bytes": sum(part.stored for part in facts.parts),
        "dense": sum(layer.rank is None for layer in facts.layers),
        "layers": len(facts.layers),
        "cells": {
            f"{row}-{column}": [cell.label, cell.share, cell.dense, cell.title]
            for row, (_, cells) in enumerate(rows)
            for column, cell in enumerate(cells)
            if cell is not None
        },
        "ranks": {layer.name: layer.rank for layer in facts.layers},
        "parts": {part.name: part.stored for part in facts.parts},
    }
