"""Models larger than memory: one block's tensors at a time, activations kept between blocks."""

from spectrim.models.offload.activations import Activations
from spectrim.models.offload.model import StreamedModel, StreamSizes

__all__ = ["Activations", "StreamSizes", "StreamedModel"]
