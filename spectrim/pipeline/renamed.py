"""Format of recipes, and earlier names of their fields and of command-line options.

Nothing is read under an old name: each ends in one error line that states the new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from spectrim.errors import InputError

FORMAT = 2
"""Of recipe files, which state it; files of format 1, with the names below, did not."""
FIELDS = {
    "path": "hessian_averaging",
    "hessian_averaging.budget": "at_budget",
    "hessian_averaging.share": "data_fraction",
    "hessian_averaging.below": "below_budget",
    "measure": "probe",
    "probe.layers": "per_layer",
    "selection": "pruning",
    "pruning.slope": "gradient_term",
    "pruning.events": "prune_steps",
    "pruning.pruning_share": "prune_until",
    "pruning.rows_per_step": "batch_size",
    "pruning.scoring_rows": "scoring_examples",
    "pruning.tuned": "trainable",
    "pruning.bases_rate": "factor_lr",
    "pruning.new_bases": "extra_rank",
    "pruning.new_bases_rate": "extra_rank_lr",
    "pruning.smallest": "svd_cutoff",
    "pruning.warmup": "warmup_ratio",
    "pruning.clip": "max_grad_norm",
    "compensation": "correction",
    "correction.base": "quantizer",
    "correction.base_options": "quantizer_options",
    "correction.path_bytes": "bytes",
    "quantisation": "quantization",
    "quantization.base": "backend",
    "quantization.group": "group_size",
    "sharing.types": "patterns",
    "sharing.window": "group_size",
    "sharing.error": "max_error",
    "sharing.estimate": "error_estimate",
    "sharing.keep": "accept",
    "calibration.statistics_bytes": "covariance_bytes",
    "calibration.statistics_form": "covariance_format",
    "calibration.wide": "wide_covariances",
    "refinement.options.sequences_per_step": "batch_size",
    "refinement.options.warmup": "warmup_ratio",
    "refinement.options.clip": "max_grad_norm",
    "refinement.options.basis": "optimizer",
    "refinement.options.optimizer_basis": "optimizer",
    "refinement.options.scaling": "lr_scaling",
    "refinement.options.mix": "original_input_weight",
}
"""Recipe fields: the path of an old one, its parents under their new names."""
VALUES = {
    ("pruning.gradient_term", "size"): "absolute",
    ("pruning.rule", "mass"): "energy",
    ("pruning.trainable", "coordinates"): "singular_values",
    ("pruning.trainable", "bases"): "factors",
    ("calibration.covariance_format", "blocks"): "block_diagonal",
    ("refinement.options.optimizer", "covariances"): "kfac_adamw",
    ("refinement.options.optimizer", "kfac_eigen"): "kfac_adamw",
    ("refinement.options.optimizer", "parameters"): "adamw",
    ("refinement.options.lr_scaling", "divergence"): "kl",
}
"""Values of recipe fields."""
PRESETS = {
    "bsi_published": "'bsi'; for its formula with signs add --set pruning.gradient_term=signed",
    "obd": "'obd_llm' as published, or 'default'",
}
"""Recipes by earlier names."""
WORDS = {
    "compensate": "quantize",
    "--base": "--quantizer",
    "--base-set": "--quantizer-option",
    "--budget-latency": "--latency-budget",
    "--budgets-latency": "--latency-budgets",
    "--group": "--group-size",
    "--measure": "--probe",
    "--no-measure": "--no-probe",
    "--path-bytes": "--correction-bytes",
    "--rows": "--batch-size",
    "--tasks": "--lm-eval",
}
"""Commands and options of the command line."""
_DEEPEST = 4
"""Levels of mappings and lists in a recipe: refinement, its entry, options, a value."""


def check_field(path: str, source: str) -> None:
    """Raise InputError for an old name in a path like `pruning.events`."""
    steps = path.split(".")
    known = [
        FIELDS.get(step, step) if number == 0 else step for number, step in enumerate(steps)
    ]
    new = [*known[:1]]
    for number, step in enumerate(steps[1:], 1):
        new.append(FIELDS.get(".".join([*known[:number], step]), step))
    if new != steps:
        raise InputError(f"{source}: '{path}' is now named '{'.'.join(new)}'")


def current_fields(values: dict[Any, Any], source: str) -> dict[Any, Any]:
    """Return the fields of a recipe without its format.

    Raises InputError for the first old name or value, and for the format of a later version.
    """
    stated = values.get("format", FORMAT)
    if not isinstance(stated, int) or isinstance(stated, bool) or not 1 <= stated <= FORMAT:
        raise InputError(
            f"{source}: format {stated!r} is none that this spectrim reads (1 to {FORMAT}); "
            "upgrade spectrim for a later one"
        )
    fields = {name: value for name, value in values.items() if name != "format"}
    for path, value in _leaves(fields):
        check_field(path, source)
        if isinstance(value, str) and (new := VALUES.get((path, value))):
            raise InputError(f"{source}: {path} '{value}' is now named '{new}'")
    return fields


def _leaves(
    value: Any, parents: tuple[str, ...] = (), depth: int = _DEEPEST
) -> Iterator[tuple[str, Any]]:
    """Yield each field with its path; entries of a list have the list's path."""
    if depth and isinstance(value, list | tuple):
        for entry in value:
            yield from _leaves(entry, parents, depth - 1)
    elif depth and isinstance(value, dict):
        for name, inner in value.items():
            path = (*parents, str(name))
            yield ".".join(path), inner
            yield from _leaves(inner, path, depth - 1)


def renamed_option(message: str) -> str | None:
    """Return an error message for an old word of the command line, else None."""
    for word in re.findall(r"--[\w-]+|'\w+'", message)[:1]:
        if (new := WORDS.get(word.strip("'"))) is not None:
            return f"{word.strip(chr(39))} is now named {new}"
    return None
