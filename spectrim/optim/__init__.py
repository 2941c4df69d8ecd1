"""Optimizers: subclasses of `torch.optim.Optimizer`, one file each.

An optimizer declares its docstring (first line: its step), `REFERENCE` and `OPTIMIZER`, the
class. Those that step matrices by a rule of their own step everything else by AdamW, inside
the same object, so that a trainer has one optimizer to look after. `split_params(model)` gives
the two groups:

    optimizer = make_optimizer("trion", split_params(model), lr=0.02)

The class is called as `OPTIMIZER(params, lr, **options)`. The contract tests read the tags of
its file:

    state_bytes(rows, columns, **options)     bytes of state for a float32 matrix
    REDUCES_TO = ("AdamW", {"basis": ...})    options with which it is this class of torch.optim
    NEEDS_RESIDUALS = True    steps on per-example residuals, so no general trainer can call it
    NEEDS_COVARIANCES = True  takes `rotations`, which come from a calibration
    NEEDS = "package"         the package that it wraps
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from torch.optim import Optimizer

from spectrim.errors import InputError, did_you_mean
from spectrim.optim._groups import split_params
from spectrim.optim._state import measure_state
from spectrim.registry import Registry

OPTIMIZERS = Registry("optimizer", "spectrim.optim", declares="OPTIMIZER")
_CHOSEN_ELSEWHERE = {"params", "lr", "rotations"}


def make_optimizer(
    name: str, params: Iterable[Any], lr: float, options: dict[str, Any] | None = None
) -> Optimizer:
    """Return an optimizer by name. Raises InputError for an unknown name or option."""
    return OPTIMIZERS.get(name).OPTIMIZER(params, lr=lr, **check_options(name, options))


def option_names(name: str) -> set[str]:
    """Return the names of the options that an optimizer takes besides its learning rate."""
    given = inspect.signature(OPTIMIZERS.get(name).OPTIMIZER).parameters
    return set(given) - _CHOSEN_ELSEWHERE


def check_options(name: str, options: dict[str, Any] | None) -> dict[str, Any]:
    """Return `options`. Raises InputError naming one that the optimizer does not take."""
    options, known = options or {}, option_names(name)
    if unknown := set(options) - known:
        wrong = min(unknown)
        raise InputError(
            f"optimizer '{name}' has no option '{wrong}'{did_you_mean(wrong, known)}; "
            f"it takes {', '.join(sorted(known))}"
        )
    return options


def check_trainable(name: str, options: dict[str, Any] | None = None) -> None:
    """Raise InputError for options or an optimizer that a loop over batches cannot use."""
    check_options(name, options)
    module = OPTIMIZERS.get(name)
    package = getattr(module, "NEEDS", None)
    if package is not None and find_spec(package) is None:
        raise InputError(
            f"optimizer '{name}' comes from {package}, which is not installed; "
            "pip install 'spectrim[optim]'"
        )
    if getattr(module, "NEEDS_RESIDUALS", False):
        raise InputError(
            f"optimizer '{name}' steps on the residual of every example, which this training "
            "has none of; call its step(model, residuals, batch) yourself, or choose another"
        )


__all__ = [
    "OPTIMIZERS",
    "check_options",
    "check_trainable",
    "make_optimizer",
    "measure_state",
    "option_names",
    "split_params",
]
