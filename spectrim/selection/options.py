"""What a selection run can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from spectrim.errors import InputError
from spectrim.selection.importance import IMPORTANCE, Slope
from spectrim.selection.rules import Rule

Tuned = Literal["coordinates", "bases"]
_BASEL_WIDTH, _BASEL_BASES = 4096, 32


@dataclass(frozen=True)
class SelectionOptions:
    """slope: how the first-order part of an importance counts in the order of removal (see
    `Importance.order`). events: prunings, spread over the first `pruning_share` of `steps`;
    steps: of tuning.

    rows_per_step of the task per step; scoring_rows: how many the importance is estimated on.
    tuned: "coordinates" alone as the papers do, or the "bases" themselves as well.
    learning_rate: of the relative coordinates; bases_rate: of bases that are tuned;
    new_bases_rate: of the new bases. new_bases: per layer, None for Basel's 32 in proportion
    to a width of 4096 (at least 1); none where nothing would train them. smallest:
    singular values below this share of a layer's mean are dropped in the end.
    """

    importance: str = "kronecker"
    importance_options: dict[str, Any] = field(default_factory=dict)
    rule: Rule = "global"
    slope: Slope = "size"
    events: int = 20
    steps: int = 400
    pruning_share: float = 0.75
    rows_per_step: int = 32
    scoring_rows: int = 256
    tuned: Tuned = "coordinates"
    learning_rate: float = 1e-2
    bases_rate: float = 4e-4
    new_bases_rate: float = 1e-3
    new_bases: int | None = None
    warmup: float = 0.03
    clip: float = 1.0
    smallest: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        IMPORTANCE.options(self.importance, self.importance_options)
        for name in ("events", "rows_per_step", "scoring_rows"):
            _at_least_one(name, getattr(self, name))
        rates = (self.learning_rate, self.bases_rate, self.new_bases_rate)
        if not (self.steps >= 0 and min(rates) > 0):
            raise InputError(
                f"steps {self.steps} and learning_rate, bases_rate and new_bases_rate {rates} "
                "have to be positive (steps may be 0)"
            )
        if not 0 <= self.pruning_share <= 1:
            raise InputError(f"pruning_share {self.pruning_share} is not between 0 and 1")

    def bases_for(self, shape: tuple[int, int]) -> int:
        """New bases of a layer of this shape."""
        if self.steps == 0:
            return 0
        if self.new_bases is not None:
            return self.new_bases
        return max(1, round(_BASEL_BASES * min(shape) / _BASEL_WIDTH))

    @property
    def event_steps(self) -> list[int]:
        """The tuning step before which each pruning happens, ascending."""
        span = self.pruning_share * self.steps
        return [round(span * number / self.events) for number in range(self.events)]


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}, expected at least 1")


def kept_after(event: int, events: int, start: float, end: float) -> float:
    """Fraction kept after pruning number `event` (from 1): geometric from `start` to `end`."""
    return start * (end / start) ** (event / events)
