"""Quality and size of a model: one file per evaluator.

An evaluator has `Options`, `NEEDS_ORIGINAL` and
`evaluate(model, blocks, options, reference=None) -> dict[str, float]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.evaluation._harness import HarnessSettings, evaluate_harness
from spectrim.evaluation._hidden import hidden_states
from spectrim.evaluation._labeled import evaluate_labeled
from spectrim.registry import Registry

EVALUATORS = Registry("evaluator", "spectrim.evaluation")


def evaluate_model(
    model: PreTrainedModel,
    blocks: TokenBlocks,
    evaluators: Iterable[str] | Mapping[str, Mapping[str, Any]],
    reference: PreTrainedModel | None = None,
) -> dict[str, float]:
    """Return every figure of the named evaluators; a mapping gives each its options.

    Raises UnknownNameError, and InputError for a wrong option, a missing `reference`, or
    blocks that do not fit the model; NumericalError for a loss that is not finite.
    """
    given = evaluators if isinstance(evaluators, Mapping) else {name: {} for name in evaluators}
    prepared = {name: EVALUATORS.options(name, dict(given[name])) for name in given}
    for name in prepared:
        _check_reference(name, reference)
    figures: dict[str, float] = {}
    for name, options in prepared.items():
        found = EVALUATORS.get(name).evaluate(model, blocks, options, reference=reference)
        if taken := figures.keys() & found.keys():
            raise InputError(f"evaluator '{name}' repeats the metrics {sorted(taken)}")
        figures |= found
    return figures


def _check_reference(name: str, reference: PreTrainedModel | None) -> None:
    if reference is None and EVALUATORS.get(name).NEEDS_ORIGINAL:
        raise InputError(
            f"evaluator '{name}' compares with the original model; give it as reference"
        )


__all__ = [
    "EVALUATORS",
    "HarnessSettings",
    "evaluate_harness",
    "evaluate_labeled",
    "evaluate_model",
    "hidden_states",
]
