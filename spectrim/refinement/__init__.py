"""Improve a compressed model at its size, by training or in closed form: one file each.

A refinement declares its docstring (first line: what it minimises), `REFERENCE`, a frozen
dataclass `Options`, where it reads statistics of the original `REQUIRES` (and, when that
depends on its options, `requires(options)`), and

    refine(original, compressed, blocks, options, progress) -> compressed

with both models on one device, the compressed one in float32, `blocks` the `TokenBlocks` to fit
it on and `progress` a `RunContext`, which also brings the statistics. It changes `compressed`
in place and returns it. The original is not touched, also where the two share tensors; modes
and `requires_grad` flags are as before. A run that is stopped leaves `compressed` as it was;
started again with the same workspace, it continues and ends with the same weights to the last
bit (float32, one thread).
"""

from __future__ import annotations

from typing import Any

from spectrim.registry import Registry
from spectrim.training.loop import Schedule
from spectrim.training.progress import RunContext

REFINEMENTS = Registry("refinement", "spectrim.refinement")


def required_statistics(name: str, given: dict[str, Any]) -> tuple[str, ...]:
    """Statistics that a refinement reads with the options `given`. Raises InputError."""
    module = REFINEMENTS.get(name)
    if hasattr(module, "requires"):
        return module.requires(REFINEMENTS.options(name, given))
    return tuple(getattr(module, "REQUIRES", ()))


__all__ = ["REFINEMENTS", "RunContext", "Schedule", "required_statistics"]
