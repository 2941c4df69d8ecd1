"""`spectrim quantize`: quantize or sparsify layers, and correct the error at low rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spectrim.cli import console, progress
from spectrim.cli.options import (
    Json,
    Model,
    Output,
    Overwrite,
    RemoteCode,
    cache_from,
    check_text,
    recipe_of,
    with_recipe_options,
)
from spectrim.errors import InputError
from spectrim.pipeline.recipe import Recipe, recipe_from

if TYPE_CHECKING:
    from spectrim.pipeline.loaded_model import LoadedModel

_FOREIGN = ("budget", "layer", "refine", "optimizer", "learning_rate", "probe")
"""Recipe options that a correction does not read."""
_ELSEWHERE = ("ratio", "quantize", "latency_budget", "elastic", "experts")
"""Recipe options that do not combine with quantizing a dense model."""
_ROWS = {
    "bits_per_weight": "bits per weight",
    "dense_bytes": "layers before",
    "base_bytes": "quantized layers",
    "path_bytes": "corrections",
    "predicted_loss_without_path": "predicted loss without corrections",
    "predicted_loss": "predicted loss",
}


Quantizer = Annotated[str | None, typer.Option(help="Quantizer (`spectrim ls`; default rtn).")]
Bits = Annotated[
    str | None, typer.Option(help="Bits per weight; 2..4 or 2,3,4 to choose for each layer.")
]
GroupSize = Annotated[
    str | None, typer.Option(help="Weights per quantization group, or several.")
]
BudgetBits = Annotated[
    float | None,
    typer.Option(
        help="Average bits per weight of everything stored, shared among layers by loss."
    ),
]
QuantizerOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="Set any other quantizer option.")
]
Rank = Annotated[
    int | None,
    typer.Option(help="Average rank of the corrections, shared by loss; 0 for none."),
]
CorrectionBytes = Annotated[
    int | None, typer.Option(help="Bytes of all corrections, instead of --rank.")
]


@with_recipe_options(*_FOREIGN, *_ELSEWHERE)
def quantize(
    model: Model,
    output: Output,
    given: dict[str, Any],
    quantizer: Quantizer = None,
    bits: Bits = None,
    group_size: GroupSize = None,
    budget_bits: BudgetBits = None,
    quantizer_option: QuantizerOption = None,
    rank: Rank = None,
    correction_bytes: CorrectionBytes = None,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Quantize or sparsify every layer, with low-rank corrections of the error."""
    wanted = {
        "quantizer": quantizer,
        "rank": rank,
        "bytes": correction_bytes,
        "bits_per_weight": budget_bits,
    }
    _check_choices(given, wanted)
    options = {"bits": _values(bits, "--bits"), "group": _values(group_size, "--group-size")}
    options |= dict(map(_assigned, quantizer_option or []))
    recipe = _with(recipe_of(given), wanted, options)

    from spectrim.checkpoint import check_output
    from spectrim.pipeline.early_checks import check_early
    from spectrim.pipeline.loaded_model import load_original
    from spectrim.pipeline.quantize import needs_text, with_correction
    from spectrim.pipeline.quantize import quantize as run
    from spectrim.runtime.context import RunContext

    recipe = with_correction(recipe)
    if recipe.correction is not None and needs_text(recipe.correction):
        check_text(recipe, model)
    check_early(model, recipe, trust_remote_code)
    check_output(output, overwrite)
    original = load_original(model, trust_remote_code)
    recipe = original.with_dtype(recipe)
    context = RunContext(cache_from(given), progress.track)
    smaller = run(original.model, original.tokenizer, recipe, context)
    _save(smaller, original, recipe, output, overwrite)
    _print(smaller.config.quantization_config, json)
    console.note(f"saved to {output}; load it with `import spectrim` and from_pretrained")


def _check_choices(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError for options that do not apply, or that exclude one another."""
    if foreign := [name for name in _FOREIGN if given[name] not in (None, [])]:
        raise InputError(
            f"--{foreign[0].replace('_', '-')} does not apply to corrections; use --rank or "
            "--correction-bytes"
        )
    if wanted["rank"] is not None and wanted["bytes"] is not None:
        raise InputError("choose one of --rank and --correction-bytes")
    if wanted["bits_per_weight"] is not None and (wanted["rank"] or wanted["bytes"]):
        raise InputError(
            "--budget-bits is for all that layers hold; for low rank within it choose "
            "--quantizer mixed instead of --rank or --correction-bytes"
        )


def _save(
    smaller: Any, original: LoadedModel, recipe: Recipe, output: Path, overwrite: bool
) -> None:
    from spectrim.checkpoint import SaveOptions, save_compressed
    from spectrim.report.card import quantization_card

    config = smaller.config.quantization_config
    saving = SaveOptions(
        card=lambda: quantization_card(original.name, config, recipe),
        extras={"spectrim_recipe.yaml": recipe.to_yaml()},
        overwrite=overwrite,
        source=original.name,
    )
    save_compressed(smaller, original.tokenizer, output, config, saving)


def _values(text: str | None, option: str) -> int | list[int] | None:
    """Return the number, or the numbers of a range `2..4` or a list `2,3,4`."""
    if text is None:
        return None
    try:
        if ".." in text:
            first, last = map(int, text.split(".."))
            return list(range(first, last + 1))
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} {text}: expected a number, a range such as 2..4, or a list such as 2,3,4"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def _assigned(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--quantizer-option {text}: expected name=value")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--quantizer-option {name}: '{value}' is not a value") from error


def _with(recipe: Recipe, wanted: dict[str, Any], options: dict[str, Any]) -> Recipe:
    """Return the recipe's correction, overridden by the command line."""
    values = recipe.to_dict()
    chosen = values["correction"] or {}
    if wanted["quantizer"] not in (None, chosen.get("quantizer")):
        chosen |= {"quantizer_options": {}, "choices": {}}
    if wanted["rank"] is not None:
        chosen["bytes"] = None
    if wanted["bits_per_weight"] is not None:
        chosen = {"quantizer": "mixed"} | chosen | {"bytes": None}
    chosen |= {name: value for name, value in wanted.items() if value is not None}
    several = {name: value for name, value in options.items() if isinstance(value, list)}
    stated = {
        n: value for n, value in options.items() if value is not None and n not in several
    }
    for field, given in (("quantizer_options", stated), ("choices", several)):
        others = {n: v for n, v in chosen.get(field, {}).items() if options.get(n) is None}
        chosen[field] = others | given
    return recipe_from(values | {"correction": chosen}, "options")


def _print(config: Any, json: bool) -> None:
    facts = config.provenance["compensation"]
    if json:
        ranks = {name: entry["rank"] for name, entry in config.layers.items()}
        options = {name: entry["options"] for name, entry in config.layers.items()}
        console.as_json(facts | {"ranks": ranks, "options": options})
        return
    rows = [(what, _figure(key, facts[key])) for key, what in _ROWS.items() if key in facts]
    paths = (
        f" + corrections by {facts['method']}, {facts['allocation']}" if facts["method"] else ""
    )
    rows += [("chosen", line) for line in facts.get("chosen", ())]
    console.table(f"{facts['base']}{paths}", ("metric", "value"), rows)


def _figure(name: str, value: float) -> str:
    from spectrim.report.formatting import size

    return size(value) if name.endswith("_bytes") else f"{value:.4f}"
