"""The quantizer's options for each layer: one set for all, or chosen under a budget of bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Any

from spectrim.errors import InputError
from spectrim.layers.quantized import QUANTIZERS, CompressedLinear, quantizer_class
from spectrim.models.linear import get_shape
from spectrim.models.source import ResidentModel
from spectrim.planning.quantizer_choices import (
    PricedOptions,
    check_budget,
    choose_options,
    price_options,
)
from spectrim.planning.solver import layer_problems
from spectrim.statistics import Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spectrim.pipeline.recipe import CorrectionRecipe
    from spectrim.runtime.context import RunContext

BITS = 8
"""Of a byte."""


def option_sets(given: CorrectionRecipe) -> list[dict[str, Any]]:
    """Return the sets of options among which each layer chooses.

    They are the quantizer's `CHOICES` that agree with the recipe's options and choices, with
    all combinations of the values of other fields. Raises InputError for a value that the
    quantizer does not offer, and for a single set.
    """
    module = QUANTIZERS.get(given.quantizer)
    offered: Sequence[dict[str, Any]] = getattr(module, "CHOICES", ({},))
    wanted = {name: (value,) for name, value in given.quantizer_options.items()}
    wanted |= {name: tuple(values) for name, values in given.choices.items()}
    for name in set(wanted) & set(offered[0]):
        fitting = [each for each in offered if each[name] in wanted[name]]
        known = {each[name] for each in offered}
        if missing := set(wanted[name]) - known:
            raise InputError(
                f"quantizer '{given.quantizer}' offers {name} "
                f"{', '.join(map(str, sorted(known)))} under a budget, not {min(missing)}"
            )
        offered = fitting
    free = sorted(set(wanted) - set(offered[0]))
    more = [dict(zip(free, v, strict=True)) for v in product(*(wanted[n] for n in free))]
    sets = [each | other for each in offered for other in more]
    if len(sets) < 2:
        raise InputError(
            "a budget of bits needs several choices; give several bits, such as --bits 2..4"
        )
    return sets


def check_choices(given: CorrectionRecipe) -> None:
    """Raise InputError for choices that the quantizer does not offer or take."""
    for each in option_sets(given):
        QUANTIZERS.options(given.quantizer, each)


def check_bits(
    shapes: Sequence[tuple[int, int]], given: CorrectionRecipe, itemsize: int
) -> None:
    """Raise InputError, before the work, for a budget that no choice of options meets."""
    if given.bits_per_weight is None:
        return
    cost = quantizer_class(given.quantizer).cost
    choices = [QUANTIZERS.options(given.quantizer, each) for each in option_sets(given)]
    least = sum(min(cost(shape, each, itemsize) for each in choices) for shape in shapes)
    check_budget(least, _budget(shapes, given.bits_per_weight))


def _budget(shapes: Sequence[tuple[int, int]], bits: float) -> int:
    return int(bits * sum(rows * columns for rows, columns in shapes) / BITS)


def options_by_layer(
    model: PreTrainedModel,
    calibration: Calibration | None,
    names: Sequence[str],
    given: CorrectionRecipe,
    itemsize: int,
    context: RunContext,
) -> dict[str, Any]:
    """Return the quantizer's options of each layer.

    Raises InputError if no choice fits the budget, NumericalError or ModelError for a layer
    that the quantizer cannot store.
    """
    if given.bits_per_weight is None or calibration is None:
        options = QUANTIZERS.options(given.quantizer, given.quantizer_options)
        return dict.fromkeys(names, options)
    priced = priced_options(model, calibration, names, given, itemsize, context)
    shapes = [get_shape(model.get_submodule(name)) for name in names]
    chosen = choose_options(priced, _budget(shapes, given.bits_per_weight))
    return {name: final_options(choice, given) for name, choice in chosen.items()}


def priced_options(
    model: PreTrainedModel,
    calibration: Calibration,
    names: Sequence[str],
    given: CorrectionRecipe,
    itemsize: int,
    context: RunContext,
) -> dict[str, list[PricedOptions]]:
    """Return the priced choices of each layer; they serve every budget."""
    draft = getattr(QUANTIZERS.get(given.quantizer), "DRAFT", {})
    choices = [QUANTIZERS.options(given.quantizer, each | draft) for each in option_sets(given)]
    problems = layer_problems(ResidentModel(model), calibration, [(name,) for name in names])
    shown = context.progress(problems, f"pricing {len(choices)} choices", len(names))
    return {
        problem.name: price_options(problem, given.quantizer, choices, itemsize)
        for (problem,) in shown
    }


def final_options(choice: PricedOptions, given: CorrectionRecipe) -> Any:
    """Return the choice with the recipe's own values of what was cut short for pricing."""
    draft = getattr(QUANTIZERS.get(given.quantizer), "DRAFT", {})
    defaults = asdict(QUANTIZERS.options(given.quantizer, given.quantizer_options))
    values = asdict(choice.options) | {name: defaults[name] for name in draft}
    return QUANTIZERS.options(given.quantizer, values)


def bits_held(bases: Mapping[str, CompressedLinear], itemsize: int) -> float:
    """Return the bits per weight of quantized layers, without biases."""
    shapes = {name: (base.out_features, base.in_features) for name, base in bases.items()}
    held = sum(type(b).cost(shapes[name], b.options, itemsize) for name, b in bases.items())
    return BITS * held / sum(rows * columns for rows, columns in shapes.values())


def shares(bases: Mapping[str, CompressedLinear]) -> list[str]:
    """Return each set of options that layers have, with their number, most layers first.

    Only the fields that differ between layers are named.
    """
    stated = [base.stated for base in bases.values()]
    fields = [f for f in stated[0] if len({str(each[f]) for each in stated}) > 1]
    counts = Counter(", ".join(f"{f} {each[f]}" for f in fields) for each in stated)
    return [f"{count} layers: {text}" for text, count in counts.most_common() if text]
