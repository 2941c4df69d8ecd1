"""Make a model ready to be compressed: what can be factored, and what stays dense and why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from spectrim.errors import ModelError, NumericalWarning
from spectrim.models.experts import fused_expert_names, split_experts, stacked_weight_names
from spectrim.models.replace import share_tied_layers
from spectrim.models.targets import Target, default_names, find_targets
from spectrim.models.usage import Usage, listed

STACKED = "several matrices in one parameter, in a layout that is not known"


@dataclass(frozen=True)
class Preparation:
    """The layers to compress, and by name why others stay dense."""

    targets: list[Target]
    dense: dict[str, str] = field(default_factory=dict)


def prepare_model(
    model: nn.Module,
    usage: Usage,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Preparation:
    """Split fused experts in place, and find the layers that can be compressed.

    Layers that the model uses in another way than by calling them, and experts of an unknown
    layout, stay dense with a warning that names them. Raises ModelError when no layer is left.
    """
    share_tied_layers(model)
    split_experts(model, [name for name in fused_expert_names(model) if name in usage.split])
    targets = find_targets(model, include, exclude)
    names = [target.name for target in targets]
    dense = {name: usage.unusable[name] for name in names if name in usage.unusable}
    if not include:
        stacked = default_names(model, stacked_weight_names(model), exclude)
        dense |= dict.fromkeys(stacked, STACKED)
    usable = [target for target in targets if target.name not in dense]
    warn_of_dense(dense, len(usable))
    return Preparation(usable, dense)


def warn_of_dense(reasons: Mapping[str, str], rest: int) -> None:
    """Warn of the layers that stay dense, with names and reasons. Raises ModelError where no
    other layer is left."""
    if not reasons:
        return
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    parts = "; ".join(f"{listed(names)}: {why}" for why, names in by_reason.items())
    if not rest:
        raise ModelError(f"no layer can be compressed ({parts})")
    warnings.warn(
        f"{len(reasons)} of {len(reasons) + rest} layers stay dense and outside the budget "
        f"({parts})",
        NumericalWarning,
        stacklevel=4,
    )
