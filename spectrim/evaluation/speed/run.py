"""The speed benchmark: every model in every case, with the limits measured in the same run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from spectrim.errors import InputError
from spectrim.evaluation.size import stored_bytes
from spectrim.evaluation.speed.memory import peak_bytes
from spectrim.evaluation.speed.roofline import Limits, measure_limits
from spectrim.evaluation.speed.timing import Times, time_interleaved
from spectrim.evaluation.speed.variants import SpeedVariant, cache_bytes, operations, read_bytes
from spectrim.evaluation.speed.workloads import Decode, Prefill, decodes
from spectrim.models.context import context_length
from spectrim.models.targets import decoder_blocks


@dataclass(frozen=True)
class Case:
    """phase "prefill": batch x length tokens at once; "decode": one by one behind them."""

    phase: Literal["prefill", "decode"]
    batch: int
    length: int


@dataclass(frozen=True)
class SpeedSettings:
    """rounds: repetitions of each measurement; steps: tokens of a timed decode."""

    batches: tuple[int, ...] = (1, 4)
    lengths: tuple[int, ...] = (128, 512)
    rounds: int = 9
    steps: int = 8

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            for value in values if isinstance(values, tuple) else (values,):
                if value < 1:
                    raise InputError(f"{name} {value} must be at least 1")


@dataclass(frozen=True)
class SpeedRow:
    """One model in one case. seconds: of a prefill, or of one decoded token of all rows.

    speedup: over the model `against`, the median of ratios within a round; of_limit: the
    achieved share of the measured bandwidth (decode) or arithmetic (prefill). transient_bytes:
    most that a block has allocated and let go of again.
    """

    case: Case
    model: str
    against: str
    seconds: float
    tokens_per_second: float
    speedup: float
    of_limit: float
    peak_activation_bytes: int
    transient_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class SpeedResult:
    """The measurements, their device, and its limits in the same run."""

    device: str
    dtype: str
    threads: int
    limits: Limits
    rows: tuple[SpeedRow, ...]


def bench_speed(
    contestants: Sequence[SpeedVariant],
    settings: SpeedSettings | None = None,
    track: Any = lambda items, what, total: items,
) -> SpeedResult:
    """Time all models, alternating, in every case.

    Raises InputError without a model, or for a case longer than a model's context.
    """
    settings = settings or SpeedSettings()
    if not contestants:
        raise InputError("a speed benchmark needs at least one model")
    parameter = next(contestants[0].model.parameters())
    device, dtype = parameter.device, parameter.dtype
    cases = _cases(contestants, settings)
    limits = measure_limits(device, dtype)
    rows: list[SpeedRow] = []
    for case in track(cases, "timing", len(cases)):
        rows.extend(_case_rows(contestants, case, settings, limits))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads()
    return SpeedResult(name, str(dtype).removeprefix("torch."), threads, limits, tuple(rows))


def _cases(contestants: Sequence[SpeedVariant], settings: SpeedSettings) -> list[Case]:
    models = [contestant.model for contestant in contestants]
    writes = all(map(decodes, models))
    context = min(context_length(model) or 2**60 for model in models)
    longest = max(settings.lengths) + (settings.steps if writes else 0)
    if longest > context:
        raise InputError(
            f"{longest} tokens are more than the model's context of {context}; "
            "choose shorter --lengths"
        )
    phases: Iterable[Any] = ("prefill", "decode") if writes else ("prefill",)
    return [Case(p, b, n) for p in phases for b in settings.batches for n in settings.lengths]


def _case_rows(
    contestants: Sequence[SpeedVariant], case: Case, settings: SpeedSettings, limits: Limits
) -> list[SpeedRow]:
    steps = settings.steps if case.phase == "decode" else 1
    runs: dict[str, Any] = {}
    for contestant in contestants:
        if case.phase == "decode":
            run: Any = Decode(contestant.model, case.batch, case.length, steps)
        else:
            run = Prefill(contestant.model, case.batch, case.length)
        runs[contestant.name] = run
    device = next(contestants[0].model.parameters()).device
    times = time_interleaved(runs, settings.rounds, device)
    place = _Place(case, steps, limits, times)
    return [_row(contestant, place, runs[contestant.name]) for contestant in contestants]


@dataclass(frozen=True)
class _Place:
    """A case with its inputs and measurements."""

    case: Case
    steps: int
    limits: Limits
    times: Times

    def of_limit(self, model: PreTrainedModel, seconds: float) -> float:
        batch, length = self.case.batch, self.case.length
        if self.case.phase == "decode":
            item = next(model.parameters()).itemsize
            moved = read_bytes(model) + cache_bytes(model, batch, length, item)
            return moved / seconds / self.limits.bytes_per_second
        return operations(model, batch, length) / seconds / self.limits.operations_per_second


def _row(contestant: SpeedVariant, place: _Place, run: Any) -> SpeedRow:
    case, model = place.case, contestant.model
    seconds = place.times.median(contestant.name) / place.steps
    tokens = case.batch * (1 if case.phase == "decode" else case.length)
    device = next(model.parameters()).device
    peaks = peak_bytes(run, device, [block for _, block in decoder_blocks(model)])
    return SpeedRow(
        case=case,
        model=contestant.name,
        against=contestant.against,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        speedup=place.times.speedup(contestant.name, contestant.against),
        of_limit=place.of_limit(model, seconds),
        peak_activation_bytes=peaks.activation,
        transient_bytes=peaks.transient,
        weight_bytes=stored_bytes(model),
    )
