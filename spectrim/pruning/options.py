"""Options of a pruning run."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

GradientTerm = Literal["signed", "absolute", "none"]
"""The first-order part of a score in the order of removal: as it is, by its size,
or not at all."""
Rule = Literal["global", "energy"]
Trainable = Literal["singular_values", "factors"]
_BASEL_WIDTH, _BASEL_BASES = 4096, 32


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
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
    prune_steps: int = Field(default=20, ge=1)
    steps: int = Field(default=400, ge=0)
    prune_until: float = Field(default=0.75, ge=0, le=1)
    batch_size: int = Field(default=32, ge=1)
    scoring_examples: int = Field(default=256, ge=1)
    trainable: Trainable = "singular_values"
    learning_rate: float = Field(default=1e-2, gt=0)
    factor_lr: float = Field(default=4e-4, gt=0)
    extra_rank_lr: float = Field(default=1e-3, gt=0)
    extra_rank: int | None = None
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    svd_cutoff: float = 1e-3
    seed: int = 0

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


def kept_after(event: int, events: int, start: float, end: float) -> float:
    """Return the fraction kept after pruning `event` (from 1), geometric between the ends."""
    return start * (end / start) ** (event / events)
