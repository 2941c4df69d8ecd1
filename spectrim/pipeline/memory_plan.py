"""`--memory`: choose the whole model or streaming, batches and buffers within the limit.

    peak = what the process holds now + LATER + the largest of the steps' needs

A step's need is counted from shapes: weights in float32, statistics in float64, activations by
the widths of the layers. The counts are upper bounds, so the peak stays below the limit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from spectrim.allocation import MOST_BINS
from spectrim.calibration.covariance_format import projected_formats, state_bytes
from spectrim.checkpoint.save_sharded import OffloadedCheckpoint
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import InputError
from spectrim.models.experts import split_expert_names
from spectrim.models.offload import StreamSizes
from spectrim.models.targets import Target, find_targets
from spectrim.pipeline.calibration_defaults import (
    MOST_TOKENS_PER_BATCH,
    calibration_length,
    default_sequences,
)
from spectrim.pipeline.recipe import Recipe
from spectrim.planning.probe_tokens import (
    MOST_JOINT_TOKENS,
    MOST_LAYER_TOKENS,
    most_probabilities,
)
from spectrim.runtime.memory import resident_bytes
from spectrim.statistics import FULL, STATISTICS, CovarianceFormat

LATER = 48 * 2**20
"""Bytes of code and tables that are loaded on first use, and what the allocators round up."""
_FLOAT, _DOUBLE = 4, 8
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Of the bytes of full covariances, tried where these do not fit."""
_LOGIT_COPIES = 6
"""Logits, those that predict, their log-probabilities and three gradients."""


def bytes_of(text: str) -> int:
    """Parse "6GiB" as a number. Raises InputError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS:
        raise InputError(
            f"'{text}' is not an amount of memory; expected for example 6GiB or 800MB"
        )
    return int(float(found[1]) * _UNITS[found[2].upper()])


@dataclass(frozen=True)
class MemoryPlan:
    """The way to run.

    sizes: how to stream, None for the whole model in memory. needed: estimated peak.
    covariance_bytes: set if even one block's covariances in full are too large.
    """

    limit: int
    needed: int
    tokens_per_batch: int
    sizes: StreamSizes | None
    disk: int = 0
    covariance_bytes: int | None = None

    def fitted(self, recipe: Recipe) -> Recipe:
        return recipe if self.covariance_bytes is None else _reduced(recipe, self)

    def __str__(self) -> str:
        limit = f"of {in_units(self.limit)}, at most {in_units(self.needed)} by the estimate"
        if self.sizes is None:
            return f"memory: {limit}: whole model, {self.tokens_per_batch} tokens per batch"
        where = "memory" if self.sizes.activation_bytes else "files"
        return (
            f"memory: {limit}: streaming block by block, {self.sizes.batch_rows} sequences per "
            f"batch, activations in {where}, {in_units(self.disk)} of disk for statistics and "
            "factors; curves are not measured, and statistics not averaged along the path"
            f"{self._given_up}"
        )

    @property
    def _given_up(self) -> str:
        if self.covariance_bytes is None:
            return ""
        return (
            f"; covariances not in full but in {in_units(self.covariance_bytes)} "
            "(calibration.covariance_bytes), at some cost in quality"
        )


def plan_memory(opened: OffloadedCheckpoint, recipe: Recipe, limit: int) -> MemoryPlan:
    """Choose the fastest way that fits. Raises InputError, with the bytes needed, if none."""
    needs = MemoryEstimate.of(opened, recipe)
    whole = needs.whole()
    length = needs.length
    if whole + needs.whole_row() <= limit:
        rows = (limit - whole) // needs.whole_row()
        tokens = int(min(MOST_TOKENS_PER_BATCH, recipe_tokens(recipe), rows * length))
        tokens = max(tokens, length)
        peak = whole + tokens // length * needs.whole_row()
        return MemoryPlan(limit, peak, tokens, None)
    if needs.streamed(1) > limit:
        return _with_fewer_numbers(needs, limit)
    return _streaming(needs, limit)


def _with_fewer_numbers(needs: MemoryEstimate, limit: int) -> MemoryPlan:
    """Stream with the largest of a few sizes of the covariances that fits."""
    least = needs.streamed(1)
    for share in _SHARES if needs.recipe.calibration.memory_budget is None else ():
        try:
            smaller = needs.with_statistics(int(share * needs.statistics()))
            least = min(least, smaller.streamed(1))
        except InputError:
            break  # too few bytes for the sums of this recipe
        if smaller.streamed(1) <= limit:
            given = smaller.recipe.calibration.covariance_bytes
            return replace(_streaming(smaller, limit), covariance_bytes=given)
    raise InputError(
        f"memory of {in_units(limit)} is too little: streaming this model takes about "
        f"{in_units(least)}; raise --memory, or choose a smaller --length"
    )


def _streaming(needs: MemoryEstimate, limit: int) -> MemoryPlan:
    recipe, length = needs.recipe, needs.length
    most = max(1, min(MOST_TOKENS_PER_BATCH, recipe_tokens(recipe)) // length)
    rows = max(n for n in range(1, most + 1) if needs.streamed(n) <= limit)
    used = needs.streamed(rows)
    kept = needs.activations()
    buffer = kept if used + kept <= limit else 0
    sizes = StreamSizes(rows, max(1, min(rows, needs.logits_rows(limit))), buffer)
    return MemoryPlan(limit, used + buffer, rows * length, sizes, needs.disk())


def _reduced(recipe: Recipe, plan: MemoryPlan) -> Recipe:
    given = replace(recipe.calibration, covariance_bytes=plan.covariance_bytes)
    return recipe.with_changes(calibration=given)


def recipe_tokens(recipe: Recipe) -> int:
    return recipe.calibration.tokens_per_batch or MOST_TOKENS_PER_BATCH


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes of all steps, from the shapes of a model that is not in memory."""

    source: Any  # a StreamedModel, or peak_memory.LoadedParts
    recipe: Recipe
    targets: Sequence[Target]
    length: int
    base: int

    @classmethod
    def of(cls, opened: OffloadedCheckpoint, recipe: Recipe) -> MemoryEstimate:
        return cls.of_parts(opened.streamed, recipe, resident_bytes())

    @classmethod
    def of_parts(cls, source: Any, recipe: Recipe, base: int) -> MemoryEstimate:
        """Estimate for a source of parts, in a process of `base` bytes without the model."""
        targets = find_targets(source.model, recipe.include, recipe.exclude)
        length = recipe.calibration.length or calibration_length(source.model)
        return cls(source, recipe, targets, length, base + LATER)

    def with_statistics(self, count: int) -> MemoryEstimate:
        given = replace(self.recipe.calibration, covariance_bytes=count)
        return replace(self, recipe=self.recipe.with_changes(calibration=given))

    def statistics(self) -> int:
        return self._statistics(self.targets)

    @cached_property
    def forms(self) -> Mapping[tuple[str, str], CovarianceFormat]:
        """Return the formats of covariances. Raises InputError for too few bytes."""
        room = self.recipe.calibration.memory_budget
        shapes = {target.name: target.shape for target in self.targets}
        if room is not None:
            return room.formats(shapes, self.recipe.statistics)
        if self.recipe.wide == "full":
            return {}
        found = projected_formats(shapes, self.recipe.statistics)
        return {
            (name, layer): form
            for (name, layer), form in found.items()
            if STATISTICS.get(name).SIDE != "input" or layer not in self._alike
        }

    @cached_property
    def _alike(self) -> set[str]:
        """Return layers whose block has others of their input's width.

        If these read one input, it is in full.
        """
        places = {t.name: (self.source.part_of(t.name), t.shape[1]) for t in self.targets}
        count = Counter(places.values())
        return {name for name, place in places.items() if count[place] > 1}

    def whole(self) -> int:
        """Count model, statistics (two passes and their mean) and factors, no activations."""
        statistics = self._statistics(self.targets)
        passes = 3 if self.recipe.averages_hessian else 1
        factors = sum(_factors(target) for target in self.targets) * _FLOAT
        weights = self.source.total_bytes
        rest = max(map(self._decomposing, self.targets)) + self._test_matrices
        rest = max(rest, self._measuring(), self._allocating())
        return self.base + 2 * weights + passes * statistics + factors + rest

    def peak(self, rows: int) -> int:
        """Count what each stage holds at once, batches being of `rows` sequences.

        Unlike `whole`, which counts on stages that overlap, it takes the largest of them.
        """
        weights, statistics = self.source.total_bytes, self._statistics(self.targets)
        passes = 3 if self.recipe.averages_hessian else 1
        factors = sum(_factors(target) for target in self.targets) * _FLOAT
        solving = max(map(self._decomposing, self.targets)) + self._test_matrices
        calibrating = passes * statistics + rows * self.whole_row()
        decomposing = passes * statistics + factors + solving
        measuring = factors + max(self._measuring(), self._allocating())
        return self.base + weights + max(calibrating, decomposing, measuring, weights + factors)

    def _measuring(self) -> int:
        """Count probabilities and logits of the tokens that curves are measured on.

        More tokens than the probabilities of which are held are measured through blocks, from
        their hidden states alone.
        """
        wanted = self.recipe.probe
        held = most_probabilities(self.source.total_bytes, self._vocabulary)
        layers = wanted.per_layer * (wanted.tokens or MOST_LAYER_TOKENS)
        joint = wanted.joint * (wanted.joint_tokens or min(held, MOST_JOINT_TOKENS))
        tokens = min(max(layers, joint), self._calibrated)
        logits = min(tokens, max(wanted.tokens or held, joint, self.length))
        hidden = 8 * self._width * len(self._blocks)
        return _FLOAT * (6 * self._vocabulary * logits + hidden * tokens)

    @property
    def _calibrated(self) -> int:
        """Tokens of the calibration."""
        given = self.recipe.calibration.sequences
        return (given or default_sequences(self.source.model, self.length)) * self.length

    def whole_row(self) -> int:
        """Count the activations of one more sequence."""
        widths = sum(sum(target.shape) for target in self.targets)
        return self.length * (2 * _FLOAT * widths + 3 * _FLOAT * self._vocabulary)

    def streamed(self, rows: int) -> int:
        """Count batches of `rows` sequences, logits of one at a time, activations in files."""
        outside = sum(map(self._loaded, self.source.outside))
        row = self.length * self._vocabulary * _FLOAT * _LOGIT_COPIES
        hidden = rows * self.length * self._width * _FLOAT * 4
        ends = outside + row + hidden + self._outside_statistics()
        blocks = [self._block(name, rows) for name in self._blocks]
        return self.base + max(ends, self._allocating(), self._observing(), *blocks)

    def _observing(self) -> int:
        """Count the run on a few tokens: all that is outside the blocks, and one of them."""
        outside = sum(map(self.source.bytes, self.source.outside))
        return outside + max(map(self._loaded, self._blocks))

    def _allocating(self) -> int:
        """Count the choices of an exact allocation: for each layer and step of the budget."""
        return len(self.targets) * MOST_BINS * 2

    def logits_rows(self, limit: int) -> int:
        outside = sum(map(self._loaded, self.source.outside))
        row = self.length * self._vocabulary * _FLOAT * _LOGIT_COPIES
        return max(1, (limit - self.base - outside - self._outside_statistics()) // (2 * row))

    def activations(self) -> int:
        """Count all that is stored between blocks, twice for the transfer to the next."""
        count = len(self._blocks) + 2 if self._backward else 2
        tokens = self._calibrated
        return tokens * self._width * _FLOAT * count

    def disk(self) -> int:
        factors = sum(_factors(target) for target in self.targets) * _FLOAT
        return self._statistics(self.targets) + factors + self.activations()

    @property
    def _blocks(self) -> list[str]:
        return self.source.blocks

    def _block(self, name: str, rows: int) -> int:
        targets = [target for target in self.targets if target.name.startswith(name + ".")]
        loaded = self._loaded(name)
        if not targets:
            return loaded
        states = [self._statistics(targets, side) for side in (False, True)]
        widths = sum(sum(target.shape) for target in targets) + 8 * self._width
        squares = rows * self.length**2 * _FLOAT
        running = rows * self.length * 3 * _FLOAT * widths + squares
        outer = max(max(target.shape) for target in targets) ** 2 * 2 * _FLOAT
        layer = max(map(self._decomposing, targets))
        compressed = self.source.bytes(name)
        most = max(max(states) + running + outer, layer + compressed)
        return loaded + most + self._test_matrices

    def _loaded(self, name: str) -> int:
        """Return the bytes of a part in float32 and, while it is read, as on disk and split."""
        split = bool(split_expert_names(self.source.model.get_submodule(name)))
        return self.source.bytes(name) * (3 if split else 2)

    def _outside_statistics(self) -> int:
        inside = tuple(name + "." for name in self._blocks)
        return self._statistics([t for t in self.targets if not t.name.startswith(inside)])

    def _statistics(self, targets: Sequence[Target], gradient: bool | None = None) -> int:
        return sum(
            state_bytes(name, target.shape, self.forms.get((name, target.name), FULL))
            for name in self.recipe.statistics
            for target in targets
            if gradient in (None, STATISTICS.get(name).NEEDS_GRADIENT)
        )

    def _decomposing(self, target: Target) -> int:
        """Count one layer: weight, factors in float32 twice, covariances, eigenproblem."""
        out, inner = target.shape
        sides = (("gradient_covariance", out), ("input_covariance", inner))
        matrices = sum(self._side(name, target.name, width) for name, width in sides)
        numbers = 6 * min(out, inner) ** 2 + 3 * out * inner + _factors(target)
        return matrices + _DOUBLE * numbers

    def _side(self, statistic: str, layer: str, width: int) -> int:
        """Return the bytes of a covariance and its root, by parts if the method takes parts."""
        form = self.forms.get((statistic, layer), FULL)
        if form == FULL or not hasattr(DECOMPOSITIONS.get(self.recipe.method), "metric"):
            return _DOUBLE * 4 * width**2
        return 6 * form.bytes(width)

    @property
    def _test_matrices(self) -> int:
        """Count the test matrices of sketches, one for each shape, as large as the sketch."""
        shapes = {target.name: target.shape for target in self.targets}
        found = {
            (STATISTICS.get(name).width(shapes[layer]), form)
            for (name, layer), form in self.forms.items()
            if form.kind == "low_rank"
        }
        return sum(sorted((form.bytes(width) for width, form in found), reverse=True)[:8])

    @property
    def _backward(self) -> bool:
        return any(STATISTICS.get(name).NEEDS_GRADIENT for name in self.recipe.statistics)

    @property
    def _vocabulary(self) -> int:
        model: Any = self.source.model
        return model.get_input_embeddings().num_embeddings

    @property
    def _width(self) -> int:
        model: Any = self.source.model
        return model.get_input_embeddings().embedding_dim


def _factors(target: Target) -> int:
    """Count the numbers in the factors of full rank."""
    return min(target.shape) * sum(target.shape)


def in_units(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
