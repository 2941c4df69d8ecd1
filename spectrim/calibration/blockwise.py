"""Calibrate with one decoder block in memory at a time, equal to the whole model in memory.

    before the blocks     h_0 = front(ids)                      for each batch
    block l = 0, 1, ...   h_{l+1} = block_l(h_l)                sums over the layers' inputs
    after the blocks      g_n = d loss(tail(h_n)) / d h_n       the loss, and its gradient
    block l = n-1, ...    g_l = g_{l+1} d block_l(h_l) / d h_l  sums over the layers' gradients

Block inputs h_l are kept (`Activations`), the block is computed again for its backward pass,
and gradients are handed from block to block. Every block is read from the disk twice, once
when no statistic needs a gradient.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from spectrim.calibration.in_memory import (
    PROBED,
    Batch,
    CalibrationSettings,
    accumulator,
    batches,
    check_finite,
    provenance_of,
    summed_loss,
)
from spectrim.data import TokenBlocks
from spectrim.errors import DamagedFileError, ModelError
from spectrim.models.block_runner import BlockCall, StreamedBlockRunner, rows_of
from spectrim.models.capture import BatchIndex, CaptureSpec, capture, group_by_input
from spectrim.models.offload.activations import Activations
from spectrim.models.offload.model import StreamedModel
from spectrim.models.targets import Target
from spectrim.runtime.files import read_values, write_values
from spectrim.runtime.snapshots import Snapshots
from spectrim.statistics import STATISTICS, Calibration, LayerTokens, Parts

INPUT, GRADIENT = "input", "gradient"
JOURNAL = "done.json"
"""The snapshot with the number of units that are done."""


@dataclass(frozen=True)
class Places:
    """Storage for what does not fit in memory.

    Attributes:
        activations: block inputs and gradients.
        statistics: a directory; None keeps the statistics in memory.
        logits_rows: sequences whose logits are in memory at once; None for a whole batch.
        snapshots: hold how far the walk is; used where all else is in files.
    """

    activations: Activations
    statistics: Path | None = None
    logits_rows: int | None = None
    snapshots: Snapshots = field(default_factory=lambda: Snapshots(None))

    @property
    def durable(self) -> bool:
        """Return whether another process could resume from here."""
        return self.statistics is not None and self.activations.durable


@dataclass
class BlockwiseWalk:
    """The units of work of one blockwise calibration, in order.

    Its result is that of `calibrate` on the whole model for equal batches. With durable places,
    an interrupted walk resumes at the unit it was in. Raises ModelError for a model that cannot
    be streamed, for a target that is not in a block or after them, and for activations or
    gradients that are not finite.
    """

    streamed: StreamedModel
    targets: Sequence[Target]
    blocks: TokenBlocks
    settings: CalibrationSettings
    places: Places
    calls: list[list[BlockCall]] = field(default_factory=list)
    probes: list[BlockCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.passage = StreamedBlockRunner(self.streamed)
        self.parts = Parts(self.places.statistics)
        self.batches = list(
            batches(self.blocks, self.settings.tokens_per_batch, 0, torch.device("cpu"))
        )
        self.forms = self.settings.formats({t.name: t.shape for t in self.targets})
        self.tokens = sum(batch.tokens for batch in self.batches)
        gradient = {n: STATISTICS.get(n).NEEDS_GRADIENT for n in self.settings.statistics}
        self.names = {
            INPUT: [name for name, needed in gradient.items() if not needed],
            GRADIENT: [name for name, needed in gradient.items() if needed],
        }

    @property
    def count(self) -> int:
        return len(self.streamed.blocks)

    @property
    def units(self) -> int:
        """Return the number of items of `steps`."""
        return self.count * (2 if self.settings.backward else 1) + 1

    def steps(self) -> Iterator[int]:
        """Do the work, yielding the number of units done after each."""
        done = self._done()
        self._front(done == 0)
        for number in range(self.units):
            if number >= done:
                finished = self._unit(number)
                self._note(number + 1)
                for kind, block in finished:
                    self._drop(kind, block)
            yield number + 1

    def result(self) -> Calibration:
        provenance = provenance_of(self.blocks, self.settings)
        provenance["sequences_done"] = len(self.blocks)
        numbers = range(self.count + 1)
        names = [name for number in numbers for name in self.part_names(number)]
        shutil.rmtree(self.places.activations.directory, ignore_errors=True)
        return self.parts.union(names, provenance)

    def part_names(self, number: int) -> list[str]:
        """Return the names in `parts` of a block; after the last, of the layers outside."""
        kinds = [INPUT, GRADIENT] if self.settings.backward else [INPUT]
        return [f"{kind}-{number:05d}" for kind in kinds]

    def _unit(self, number: int) -> list[tuple[str, int]]:
        """Run one unit and return the activations that are no longer needed."""
        if number < self.count:
            self._forward(number)
            return [] if self.settings.backward else [(INPUT, number)]
        if number == self.count:
            self._tail()
            return [(INPUT, self.count)]
        block = 2 * self.count - number
        self._backward(block)
        return [(INPUT, block), (GRADIENT, block + 1)]

    def _front(self, keep: bool) -> None:
        first = self.batches[0]
        self.passage.learn(first.ids[:1], first.mask[:1])
        with self.streamed.outside_when_used():
            self.probes = self._probe_calls(first)
            for number, batch in enumerate(self.batches):
                hidden, calls = self.passage.before(batch.ids, batch.mask)
                self.calls.append(calls)
                if keep:
                    self.places.activations.put((INPUT, 0, number), hidden)

    @torch.no_grad()
    def _forward(self, number: int) -> None:
        name, targets = self.streamed.blocks[number], self.targets_of(number)
        with self.streamed.resident(name) as block:
            part = self._empty(INPUT, targets, self._groups(number, block))
            for index, batch in enumerate(self.batches):
                hidden = self.places.activations.get((INPUT, number, index))
                with self._watched(targets, batch, part, backward=False):
                    output = self.passage.through(block, hidden, self.calls[index][number])
                self.places.activations.put((INPUT, number + 1, index), output)
        self.parts.put(f"{INPUT}-{number:05d}", part)

    def _backward(self, number: int) -> None:
        name, targets = self.streamed.blocks[number], self.targets_of(number)
        groups = self.parts.get(f"{INPUT}-{number:05d}").groups
        part = self._empty(GRADIENT, targets, groups)
        with self.streamed.resident(name) as block:
            for index, batch in enumerate(self.batches):
                hidden = self.places.activations.get((INPUT, number, index)).clone()
                gradient = self.places.activations.get((GRADIENT, number + 1, index))
                hidden.requires_grad_(number > 0)
                with self._watched(targets, batch, part, backward=True):
                    call = self.calls[index][number]
                    output = self.passage.through(block, hidden, call)
                    if output.requires_grad:
                        output.backward(gradient)
                if number > 0:
                    assert hidden.grad is not None
                    self.places.activations.put((GRADIENT, number, index), hidden.grad)
        self.parts.put(f"{GRADIENT}-{number:05d}", part)

    def _tail(self) -> None:
        """Run what follows the blocks and the loss; keep its gradient for the last block."""
        targets = self.targets_of(self.count)
        with self.streamed.outside_when_used(but=[self.passage.embedding]):
            groups = self._tail_groups(targets)
            forward = self._empty(INPUT, targets, groups)
            backward = self._empty(GRADIENT, targets, groups)
            for index, batch in enumerate(self.batches):
                hidden = self.places.activations.get((INPUT, self.count, index))
                gradient = torch.zeros_like(hidden)
                for rows in rows_of(len(hidden), self.places.logits_rows or len(hidden)):
                    piece = _rows(batch, rows)
                    gradient[rows] = self._loss(piece, hidden[rows], (forward, backward))
                if self.settings.backward:
                    self.places.activations.put((GRADIENT, self.count, index), gradient)
        if missed := [name for name, count in forward.counts.items() if not count]:
            raise ModelError(
                f"{missed[0]} is neither in a block nor after them, so it cannot be streamed; "
                "leave it out with --exclude"
            )
        self.parts.put(f"{INPUT}-{self.count:05d}", forward)
        self.parts.put(f"{GRADIENT}-{self.count:05d}", backward)

    def _loss(
        self, batch: Batch, hidden: Tensor, parts: tuple[Calibration, Calibration]
    ) -> Tensor:
        """Return the gradient of the loss for `hidden`, zero where no statistic needs it."""
        backward, targets = self.settings.backward, self.targets_of(self.count)
        hidden = hidden.clone().requires_grad_(backward)
        with (
            torch.set_grad_enabled(backward),
            self._watched(targets, batch, parts[0], backward=False),
            self._watched(targets, batch, parts[1], backward=backward),
        ):
            logits = self.passage.after(batch.ids, batch.mask, hidden)
            if not backward:
                total = logits.sum(-1, dtype=torch.float32)[batch.mask].sum()
                check_finite(total, batch.first_sequence)
                return torch.zeros_like(hidden)
            loss = summed_loss(logits, batch, self.settings)
            check_finite(loss, batch.first_sequence)
            loss.backward()
        assert hidden.grad is not None
        return hidden.grad

    def _watched(
        self, targets: Sequence[Target], batch: Batch, part: Calibration, backward: bool
    ) -> AbstractContextManager[None]:
        """Sum into `part`, in the forward pass or only in the backward pass."""
        add = accumulator(part)
        index = BatchIndex.of(batch.mask, batch.first_sequence, batch.weights)

        def sink(layer: str, tokens: LayerTokens, with_gradient: bool) -> None:
            if with_gradient == backward:
                add(layer, tokens, with_gradient)

        watch = CaptureSpec(index, sink, backward, self.settings.gradient_only)
        return capture(self.streamed.model, targets, watch)

    def _probe_calls(self, first: Batch) -> list[BlockCall]:
        return self.passage.before(first.ids[:1, :PROBED], first.mask[:1, :PROBED])[1]

    def _groups(self, number: int, block: nn.Module) -> dict[str, str]:
        hidden = self.places.activations.get((INPUT, number, 0))[:1, :PROBED]
        call = self.probes[number]
        return group_by_input(
            self.streamed.model,
            self.targets_of(number),
            lambda: self.passage.through(block, hidden, call),
        )

    @torch.no_grad()
    def _tail_groups(self, targets: Sequence[Target]) -> dict[str, str]:
        if not targets:
            return {}
        first, hidden = self.batches[0], self.places.activations.get((INPUT, self.count, 0))
        ids, mask = first.ids[:1], first.mask[:1]
        run = lambda: self.passage.after(ids, mask, hidden[:1])  # noqa: E731
        return group_by_input(self.streamed.model, targets, run)

    def _empty(
        self, kind: str, targets: Sequence[Target], groups: dict[str, str]
    ) -> Calibration:
        shapes = {target.name: target.shape for target in targets}
        part = Calibration.empty(shapes, groups, self.names[kind], self.forms)
        part.tokens = self.tokens
        return part

    def targets_of(self, number: int) -> list[Target]:
        """Return the targets of a block by its number; after the last, those outside."""
        if number < self.count:
            prefix = self.streamed.blocks[number] + "."
            return [target for target in self.targets if target.name.startswith(prefix)]
        inside = tuple(name + "." for name in self.streamed.blocks)
        return [target for target in self.targets if not target.name.startswith(inside)]

    def _drop(self, kind: str, block: int) -> None:
        for index in range(len(self.batches)):
            self.places.activations.drop((kind, block, index))

    def _done(self) -> int:
        if not self.places.durable:
            return 0
        return self.places.snapshots.load(JOURNAL, _read_count) or 0

    def _note(self, done: int) -> None:
        if self.places.durable:
            self.places.snapshots.save(JOURNAL, partial(write_values, values=done))


def _read_count(path: Path) -> int:
    count = read_values(path)
    if not isinstance(count, int):
        raise DamagedFileError(f"{path} holds no number of units; delete it and run again")
    return count


def _rows(batch: Batch, rows: slice) -> Batch:
    scored, weights = (None if t is None else t[rows] for t in (batch.scored, batch.weights))
    first, ids, mask = batch.first_sequence + rows.start, batch.ids[rows], batch.mask[rows]
    return Batch(first, ids, mask, scored, weights)
