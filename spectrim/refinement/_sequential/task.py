"""What a sequential refinement is given, and the options that all of them have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.hooks import evaluation_mode
from spectrim.refinement._sequential.state import Layers, rewritable_layers
from spectrim.statistics import Calibration
from spectrim.training.forward import Precision, Tokens
from spectrim.training.loop import run_key
from spectrim.training.progress import RunContext

REQUIRES = ("gradient_covariance",)


@dataclass(frozen=True)
class SequentialOptions:
    """out_metric: "gradient", errors weighted by the loss's curvature, or "identity", all
    outputs alike; damping of the covariances, relative to their mean diagonal; precision is
    that of the forward passes ("float32" or "bfloat16")."""

    out_metric: Literal["gradient", "identity"] = "gradient"
    damping: float = 1e-3
    batch_size: int = 4
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1 or self.batch_size < 1:
            raise InputError(
                "damping has to lie between 0 and 1 and batch_size to be positive, "
                f"got {self.damping} and {self.batch_size}"
            )


def requires(options: SequentialOptions) -> tuple[str, ...]:
    """The statistics of the original that these options make use of."""
    return REQUIRES if options.out_metric == "gradient" else ()


@dataclass(frozen=True)
class SequentialInputs:
    """One refinement by name, with everything its `refine` was given."""

    name: str
    original: PreTrainedModel
    compressed: PreTrainedModel
    blocks: TokenBlocks
    options: SequentialOptions
    progress: RunContext

    @property
    def calibration(self) -> Calibration | None:
        """Gradient covariances, where the output metric asks for them."""
        return self.progress.calibration if requires(self.options) else None

    @cached_property
    def tokens(self) -> Tokens:
        return Tokens(self.blocks, self.compressed.device, self.options.precision)

    def check(self) -> None:
        if requires(self.options) and self.calibration is None:
            raise InputError(
                f"{self.name} with out_metric 'gradient' needs gradient covariances: give "
                "RunContext(calibration=...), as `spectrim.refine` does, or set out_metric to "
                "'identity'"
            )

    @contextmanager
    def models_ready(self) -> Iterator[Layers]:
        """Both in evaluation mode; the factored layers as they stand."""
        with evaluation_mode(self.original), rewritable_layers(self.compressed) as given:
            yield given

    def key(self, given: Layers) -> dict[str, Any]:
        """All that the result depends on."""
        models = self.original, self.compressed
        return run_key(self.name, *models, self.blocks, self.options) | {
            "statistics": self._statistics(given)
        }

    def _statistics(self, given: Layers) -> str | None:
        if self.calibration is None:
            return None
        return self.calibration.digest(given, REQUIRES)
