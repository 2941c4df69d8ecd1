"""Improve a compressed model at its size, by training or in closed form: one file each.

A refinement declares its docstring (first line: what it minimizes), `REFERENCE`, a frozen
dataclass `Options`, where it reads statistics of the original `REQUIRES` (and, when that
depends on its options, `requires(options)`), and

    refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses

It changes `inputs.compressed` in place and returns the loss of every step, by stage. The
original is not touched, also where the two share tensors; modes and `requires_grad` flags are
as before. A run that is stopped leaves `compressed` as it was; started again with the same
cache, it resumes and ends with the same weights to the last bit (float32, one thread).

The contract tests of every refinement read the tags of its file:

    QUICK = {"epochs": 4}     options with which a test takes a second, at least 12 steps
    NEEDS_LOSSLESS = True     only for layers that store any factors of their rank
    ALL_SIZES = True          takes `inputs.sizes`, a model that holds several sizes
"""

from __future__ import annotations

from typing import Any

from spectrim.registry import Registry
from spectrim.training.inputs import Losses, TrainingInputs

REFINEMENTS = Registry("refinement", "spectrim.refinement")


def required_statistics(name: str, given: dict[str, Any]) -> tuple[str, ...]:
    """Return the statistics that a refinement reads with `given` options. Raises InputError."""
    module = REFINEMENTS.get(name)
    if hasattr(module, "requires"):
        return module.requires(REFINEMENTS.options(name, given))
    return tuple(getattr(module, "REQUIRES", ()))


__all__ = ["REFINEMENTS", "Losses", "TrainingInputs", "required_statistics"]
