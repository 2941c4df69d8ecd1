"""Faster execution of a compressed model, in place: same weights, same outputs, same file."""

from spectrim.inference.rewire import Fused, fuse, unfuse

__all__ = ["Fused", "fuse", "unfuse"]
