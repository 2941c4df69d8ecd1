"""What a refinement is given besides the context of every long run."""

from __future__ import annotations

from dataclasses import dataclass, field

from spectrim.runtime import context
from spectrim.statistics import Calibration


@dataclass(frozen=True)
class RunContext(context.RunContext):
    """`losses` is filled by the refinement: the loss of every step, by stage. `calibration`
    holds the original's statistics, for a refinement that requires some."""

    seconds_between_saves: float = 60.0
    losses: dict[str, list[float]] = field(default_factory=dict)
    calibration: Calibration | None = None
