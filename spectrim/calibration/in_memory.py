"""Calibration with the whole model in memory.

Parameters are frozen, so no weight gradient is ever formed: peak memory is the model, the
statistics, and the activations of one batch of at most `tokens_per_batch` tokens (at least
one sequence). The pipeline chooses the batch so that these take no more room than the weight
gradients would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.calibration.covariance_format import MemoryBudget, Wide, projected_formats
from spectrim.calibration.labeled import LabeledBatch, labeled_batches, whole_batch
from spectrim.calibration.loss import IGNORED, summed_cross_entropy
from spectrim.data import TokenBlocks
from spectrim.data.labeled import LabeledRows
from spectrim.errors import InputError, ModelError
from spectrim.models.capture import (
    BatchIndex,
    CaptureSpec,
    Consumer,
    capture,
    group_by_input,
)
from spectrim.models.hooks import attach_hooks, frozen_eval
from spectrim.models.kind import CAUSAL, kind_of
from spectrim.models.targets import Target
from spectrim.statistics import (
    STATISTICS,
    Calibration,
    CovarianceFormat,
    LayerTokens,
    at_least_float32,
)

LABEL_KINDS = ("data", "sampled")
PROBED = 64
"""Tokens of the sequence that shows which layers share an input."""


@dataclass(frozen=True)
class CalibrationSettings:
    """labels: "data" (empirical Fisher) or "sampled" from the model (true Fisher).

    temperature T, for sampled labels: y ~ softmax(z / T), and the loss T CE(z / T, y), whose
    gradients have covariance diag(p) - p p^T, p = softmax(z / T), in units of the logits z.
    room: for the sums; None keeps all covariances in full.

    every: only each n-th batch is run, as one of n processes does.

    wide: covariances of the wider sides of layers in "full", or as they are "projected" the
    layer's weight, in the numbers of its smaller side; a wide input that several layers read
    stays in full. originals: weights by layer, where the model holds others than those that
    are to be decomposed.
    """

    statistics: tuple[str, ...]
    labels: str = "data"
    tokens_per_batch: int = 4096
    seed: int = 0
    temperature: float = 1.0
    every: int = 1
    memory_budget: MemoryBudget | None = None
    wide: Wide = "full"
    originals: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.wide != "full" and self.memory_budget is not None:
            raise InputError(
                "memory_budget and wide='projected' are two forms of a covariance; give one"
            )
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}, expected above 0")
        if self.temperature != 1.0 and self.labels != "sampled":
            raise InputError(
                "a temperature needs labels drawn from the model; set labels=sampled"
            )
        if self.labels not in LABEL_KINDS:
            raise InputError(f"labels '{self.labels}' unknown; expected one of {LABEL_KINDS}")
        for name in self.statistics:
            STATISTICS.get(name)

    @property
    def label_key(self) -> list[Any]:
        """Return what the labels depend on besides model and text."""
        return [self.labels, self.seed, self.temperature]

    @property
    def format_key(self) -> dict[str, Any]:
        """Return the formats' part of the cache key; empty if all is stored in full."""
        if self.wide == "projected":
            return {"wide": self.wide}
        return {} if self.memory_budget is None else {"room": asdict(self.memory_budget)}

    def formats(
        self, shapes: dict[str, tuple[int, int]]
    ) -> dict[tuple[str, str], CovarianceFormat]:
        """Return the formats by statistic and layer of covariances that are not in full."""
        if self.wide == "projected":
            return projected_formats(shapes, self.statistics)
        return (
            {}
            if self.memory_budget is None
            else self.memory_budget.formats(shapes, self.statistics)
        )

    @property
    def backward(self) -> bool:
        return any(STATISTICS.get(name).NEEDS_GRADIENT for name in self.statistics)

    @property
    def gradient_only(self) -> bool:
        """Return whether no statistic reads inputs or outputs in the backward pass."""
        modules = map(STATISTICS.get, self.statistics)
        return all(getattr(m, "GRADIENT_ONLY", False) for m in modules if m.NEEDS_GRADIENT)


@dataclass
class Batch:
    """Some rows; `weights` (B,) of each in sums over tokens, None where all count once."""

    first_sequence: int
    ids: Tensor
    mask: Tensor
    scored: Tensor | None = None
    weights: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> float:
        """Return the number of real tokens, by their weights."""
        if self.weights is None:
            return int(self.mask.sum())
        return float(self.mask.sum(1).to(self.weights) @ self.weights)

    @property
    def index(self) -> BatchIndex:
        return BatchIndex.of(self.mask, self.first_sequence, self.weights)

    def forward(self, model: nn.Module) -> Tensor:
        """Return the logits (B, T, V)."""
        attention = None if bool(self.mask.all()) else self.mask.long()
        return model(input_ids=self.ids, attention_mask=attention, use_cache=False).logits

    def finite_sum(self, model: nn.Module) -> Tensor:
        """Return a number that is finite where the logits of all real tokens are."""
        return self.forward(model).sum(-1, dtype=torch.float32)[self.mask].sum()

    def summed_loss(self, model: nn.Module, settings: CalibrationSettings) -> Tensor:
        return summed_loss(self.forward(model), self, settings)


Rows = TokenBlocks | LabeledRows
AnyBatch = Batch | LabeledBatch


def rows_per_batch(blocks: Rows, tokens_per_batch: int) -> int:
    return max(1, tokens_per_batch // blocks.length)


def any_batches(
    rows: Rows, tokens_per_batch: int, start: int, device: torch.device, every: int = 1
) -> Iterator[AnyBatch]:
    """Yield batches of text, or of examples with labels, which one process alone reads."""
    if isinstance(rows, LabeledRows):
        yield from labeled_batches(rows, tokens_per_batch, start, device)
    else:
        yield from batches(rows, tokens_per_batch, start, device, every)


def batches(
    blocks: TokenBlocks,
    tokens_per_batch: int,
    start: int,
    device: torch.device,
    every: int = 1,
) -> Iterator[Batch]:
    size = rows_per_batch(blocks, tokens_per_batch)
    for first in range(start, len(blocks.ids), size * every):
        ids = blocks.ids[first : first + size].to(device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        if blocks.mask is not None:
            mask = blocks.mask[first : first + size].to(device)
        scored = None
        if blocks.scored is not None:
            scored = blocks.scored[first : first + size].to(device)
        weights = None
        if blocks.weights is not None:
            weights = blocks.weights[first : first + size].to(device)
        yield Batch(first, ids, mask, scored, weights)


def calibrate(
    model: nn.Module,
    targets: Sequence[Target],
    blocks: Rows,
    settings: CalibrationSettings,
    resume: Calibration | None = None,
) -> Calibration:
    """Run the model over all blocks and return the summed statistics.

    `resume` is a calibration that goes on at sequence `provenance["sequences_done"]`.
    Raises ModelError when activations or gradients are not finite.
    """
    *_, result = calibrate_steps(model, targets, blocks, settings, resume)
    return result


def calibrate_steps(
    model: nn.Module,
    targets: Sequence[Target],
    blocks: Rows,
    settings: CalibrationSettings,
    resume: Calibration | None = None,
) -> Iterator[Calibration]:
    """Run `calibrate`, yielding the running result after every batch, to be stored."""
    device = next(model.parameters()).device
    result = resume or begin(model, targets, blocks, settings)
    start, size = int(result.provenance.get("sequences_done", 0)), settings.tokens_per_batch
    yield result
    with frozen_eval(model):
        for batch in any_batches(blocks, size, start, device, settings.every):
            run_batch(model, targets, batch, settings, accumulator(result))
            result.tokens += batch.tokens
            done = batch.first_sequence + batch.rows * settings.every
            result.provenance["sequences_done"] = min(done, len(blocks))
            yield result


def per_sequence(steps: Iterable[Calibration]) -> Iterator[Calibration]:
    """Yield the running result once per finished sequence, for a progress bar."""
    done = 0
    for result in steps:
        now = int(result.provenance["sequences_done"])
        for _ in range(now - done):
            yield result
        done = now


def begin(
    model: nn.Module,
    targets: Sequence[Target],
    blocks: Rows,
    settings: CalibrationSettings,
) -> Calibration:
    """Return sums over no tokens; one sequence is run to find which layers share an input."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def run() -> None:
        if isinstance(blocks, LabeledRows):
            whole_batch(blocks.every(len(blocks)), device).forward(model)  # the first alone
        else:
            model(input_ids=blocks.ids[:1, :PROBED].to(device), use_cache=False)

    shapes = {target.name: target.shape for target in targets}
    groups = group_by_input(model, targets, run)
    forms = settings.formats(shapes)
    result = Calibration.empty(shapes, groups, settings.statistics, forms)
    result.provenance = provenance_of(blocks, settings)
    if (kind := kind_of(model)) is not CAUSAL:
        result.provenance["kind"] = kind.name
    return result


def provenance_of(blocks: Rows, settings: CalibrationSettings) -> dict[str, Any]:
    """Return the provenance of a calibration that has not begun."""
    return {
        "labels": settings.labels,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "data": {"source": blocks.source, "fingerprint": blocks.fingerprint, **blocks.settings},
        "sequences_done": 0,
    }


def run_batch(
    model: nn.Module,
    targets: Sequence[Target],
    batch: AnyBatch,
    settings: CalibrationSettings,
    sink: Consumer,
) -> None:
    """Run one forward pass, and one backward if a statistic needs it, of a frozen model."""
    first = batch.first_sequence
    given = settings.backward, settings.gradient_only, settings.originals or {}
    with capture(model, targets, CaptureSpec(batch.index, sink, *given)):
        if not settings.backward:
            with torch.no_grad():
                check_finite(batch.finite_sum(model), first)
            return
        loss = batch.summed_loss(model, settings)
        check_finite(loss, first)
        if loss.requires_grad:  # some target was reached
            loss.backward()


def check_finite(value: Tensor, first_sequence: int) -> None:
    """Raise ModelError for a loss or a sum of logits that is not finite."""
    if not torch.isfinite(value):
        raise ModelError(
            f"the loss is not finite on sequences from {first_sequence} on; "
            "check the weights for NaN and calibrate in float32"
        )


def accumulator(result: Calibration) -> Consumer:
    def sink(layer: str, tokens: LayerTokens, with_gradient: bool) -> None:
        if not with_gradient:
            result.counts[layer] += tokens.count
        for name, states in result.states.items():
            module = STATISTICS.get(name)
            if with_gradient == module.NEEDS_GRADIENT and layer in states:
                module.update(states[layer], tokens)

    return sink


def summed_loss(logits: Tensor, batch: Batch, settings: CalibrationSettings) -> Tensor:
    """Sum the next-token cross-entropy over real tokens, with labels from data or the model.

    Where the batch says what is `scored`, only over those tokens: gradients then tell what
    the answers need, while every real token still counts in the sums (and as a divisor).
    """
    predicting = at_least_float32(logits)
    if settings.temperature != 1:
        predicting = predicting / settings.temperature
    if settings.labels == "sampled":
        given = predicting.detach()[:, :-1]
        drawn = _sample(given, batch.first_sequence, settings.seed)
    else:
        drawn = batch.ids[:, 1:]
    counted = batch.mask[:, 1:] & batch.mask[:, :-1]
    if batch.scored is not None:
        counted &= batch.scored[:, 1:]
    labels = torch.full_like(batch.ids, IGNORED)  # of every position, so that none is copied
    labels[:, :-1] = drawn.masked_fill(~counted, IGNORED)
    summed = summed_cross_entropy(predicting.flatten(0, 1), labels.flatten())
    return settings.temperature * summed


def _sample(logits: Tensor, first_sequence: int, seed: int) -> Tensor:
    """Draw one label per position and sequence, independent of the batch split."""
    rows = []
    for offset, row in enumerate(logits):
        generator = torch.Generator(row.device)
        generator.manual_seed(seed * 1_000_003 + first_sequence + offset)
        rows.append(torch.multinomial(row.softmax(-1), 1, generator=generator)[:, 0])
    return torch.stack(rows)


@contextmanager
def frozen_eval_with_graph(model: nn.Module, backward: bool) -> Iterator[None]:
    """Enter `frozen_eval`, with the graph started at the embedding's output."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    after = [(embedding, lambda m, i, output: output.requires_grad_(True))] if backward else []
    with attach_hooks(after=after), frozen_eval(model):
        yield
