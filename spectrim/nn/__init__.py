"""Constrained layers, losses and initializations, one file each.

A file declares, besides its docstring and `REFERENCE`:

    MODULE                      the nn.Module, whose options are arguments of its constructor
    example()                   a small instance and the arguments of a call of it; those that
                                require gradients are checked by the contract tests
    violation(module, *inputs)  optional: the largest deviation from the constraint

An initialization, which is no module, declares its function as `INITIALIZER` instead. Modules
compute in float32 at least and return the dtype of their input.
"""

from __future__ import annotations

from spectrim.registry import Registry

NN = Registry("module", "spectrim.nn")

__all__ = ["NN"]
