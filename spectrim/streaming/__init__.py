"""Models larger than memory: one block's tensors at a time, activations kept between blocks."""

from spectrim.streaming.activations import Activations
from spectrim.streaming.model import StreamedModel

__all__ = ["Activations", "StreamedModel"]
