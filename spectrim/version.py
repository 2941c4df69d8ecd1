"""Identify this library in caches and checkpoints."""

__version__ = "0.1.0"
"""Version of this library."""
QUANT_METHOD = "spectrim"
"""Name of the format in a checkpoint's `quantization_config`."""
