"""Faster execution of a compressed model, in place: same weights, same outputs, same file."""

from spectrim.inference.fusion import FuseReport, fuse, unfuse

__all__ = ["FuseReport", "fuse", "unfuse"]
