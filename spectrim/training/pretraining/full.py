"""`W`: all weights dense, with any optimizer; what the other ways are compared with.

Nothing is replaced. With a projecting optimizer (`dct_adamw`, `galore`) the weights are dense
and only the optimizer's state is small.
"""

from __future__ import annotations

from typing import Any

from spectrim.registry import NoOptions
from spectrim.training.pretraining._job import Job

REFERENCE = "the ordinary way"


def train(job: Job, options: NoOptions) -> dict[str, dict[str, Any]]:
    """Train every parameter. Raises NumericalError naming a step that is not finite."""
    job.train()
    return {}
