"""Options of a pruning run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from spectrim.errors import InputError
from spectrim.pruning.importance import IMPORTANCE, GradientTerm
from spectrim.pruning.selection_rules import Rule

Trainable = Literal["singular_values", "factors"]
_BASEL_WIDTH, _BASEL_BASES = 4096, 32


@dataclass(frozen=True)
class PruningOptions:
    """gradient_term: how the first-order part of an importance counts in the order of removal
    (see `Importance.order`). prune_steps: prunings, spread over the first `prune_until` of
    `steps`; steps: of tuning.

    batch_size: rows of the task per step; scoring_examples: how many the importance is
    estimated on. trainable: "singular_values" alone as the papers do, or the "factors"
    themselves as well. learning_rate: of the relative coordinates; factor_lr: of factors that
    are trained; extra_rank_lr: of the new bases. extra_rank: per layer, None for Basel's 32 in
    proportion to a width of 4096 (at least 1); none where nothing would train them. svd_cutoff:
    singular values below this share of a layer's mean are dropped in the end.
    """

    importance: str = "kronecker"
    importance_options: dict[str, Any] = field(default_factory=dict)
    rule: Rule = "global"
    gradient_term: GradientTerm = "absolute"
    prune_steps: int = 20
    steps: int = 400
    prune_until: float = 0.75
    batch_size: int = 32
    scoring_examples: int = 256
    trainable: Trainable = "singular_values"
    learning_rate: float = 1e-2
    factor_lr: float = 4e-4
    extra_rank_lr: float = 1e-3
    extra_rank: int | None = None
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    svd_cutoff: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        IMPORTANCE.options(self.importance, self.importance_options)
        for name in ("prune_steps", "batch_size", "scoring_examples"):
            _at_least_one(name, getattr(self, name))
        rates = (self.learning_rate, self.factor_lr, self.extra_rank_lr)
        if not (self.steps >= 0 and min(rates) > 0):
            raise InputError(
                f"steps {self.steps} and learning_rate, factor_lr and extra_rank_lr {rates} "
                "have to be positive (steps may be 0)"
            )
        if not 0 <= self.prune_until <= 1:
            raise InputError(f"prune_until {self.prune_until} is not between 0 and 1")

    def extra_rank_for(self, shape: tuple[int, int]) -> int:
        """Return the number of new bases of a layer of this shape."""
        if self.steps == 0:
            return 0
        if self.extra_rank is not None:
            return self.extra_rank
        return max(1, round(_BASEL_BASES * min(shape) / _BASEL_WIDTH))

    @property
    def prune_at(self) -> list[int]:
        """Return the tuning steps before which bases are pruned, ascending."""
        span = self.prune_until * self.steps
        return [round(span * number / self.prune_steps) for number in range(self.prune_steps)]


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}, expected at least 1")


def kept_after(event: int, events: int, start: float, end: float) -> float:
    """Return the fraction kept after pruning `event` (from 1), geometric between the ends."""
    return start * (end / start) ** (event / events)
