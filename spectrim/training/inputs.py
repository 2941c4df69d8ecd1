"""The models, the text and the statistics that a training or a refinement works on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.models.fingerprint import model_fingerprint
from spectrim.runtime import distributed
from spectrim.statistics import Calibration
from spectrim.training.sampled_sizes import SampledSizes

Losses = dict[str, list[float]]
"""The loss of every step, by stage."""


@dataclass(frozen=True)
class TrainingInputs:
    """The inputs of a refinement, and the model that it changes.

    Attributes:
        original: the model before its compression; trainings of one model alone name that one.
        compressed: the model to change in place, in float32, on the device of the original.
        blocks: the sequences to fit it on.
        statistics: those of the original, for a refinement that requires some.
        sizes: of a model that holds several; only refinements with `ALL_SIZES` take one.
    """

    original: PreTrainedModel
    compressed: PreTrainedModel
    blocks: TokenBlocks
    statistics: Calibration | None = None
    sizes: SampledSizes | None = None

    def key(self, name: str, options: Any) -> dict[str, Any]:
        """Return all that the result of `name` with these inputs depends on."""
        count = distributed.num_processes()
        several = {} if self.sizes is None else {"sizes": self.sizes.key}
        return (
            ({"processes": count} if count > 1 else {})
            | several
            | {
                "refinement": [name, asdict(options)],
                "original": model_fingerprint(self.original),
                "compressed": model_fingerprint(self.compressed),
                "data": self.blocks.fingerprint,
            }
        )
