"""Improve a compressed model by training what is in its blocks: one file per refinement.

A refinement declares its docstring (first line: what it minimises), `REFERENCE`, a frozen
dataclass `Options` and

    refine(original, compressed, blocks, options, progress) -> compressed

with both models on one device, the compressed one in float32, `blocks` the `TokenBlocks` to
train on and `progress` a `Progress`. It trains `compressed` in place and returns it. The
original is not touched, also where the two share tensors; modes and `requires_grad` flags are
as before. A run that is stopped leaves `compressed` as it was; started again with the same
workspace, it continues and ends with the same weights to the last bit (float32, one thread).
"""

from spectrim.refinement._progress import Progress
from spectrim.refinement._training import Schedule
from spectrim.registry import Registry

REFINEMENTS = Registry("refinement", "spectrim.refinement")

__all__ = ["REFINEMENTS", "Progress", "Schedule"]
