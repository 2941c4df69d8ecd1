"""Optimizers: `torch.optim.Optimizer` subclasses, one file each."""

from __future__ import annotations

from spectrim.registry import Registry

OPTIMIZERS = Registry("optimizer", "spectrim.optim")

__all__ = ["OPTIMIZERS"]
