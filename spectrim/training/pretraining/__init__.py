"""Ways to train a model from scratch: one file each.

A way declares its docstring (first line: the weights it trains), `REFERENCE`, where it has
some a frozen dataclass `Options`, and

    train(job: Job, options: Options) -> dict[str, dict[str, Any]]

It trains `job.model`, in place, by `job.run` or stages of it, and returns the entries of the
layers that are not dense in the end, `{name: {"kind": ..., "rank": ...}}`, for the
checkpoint's config. Embeddings, output layer and norms are trained as they are.
"""

from __future__ import annotations

from spectrim.registry import Registry
from spectrim.training.pretraining._job import Job

PRETRAINING = Registry("training method", "spectrim.training.pretraining")

__all__ = ["PRETRAINING", "Job"]
