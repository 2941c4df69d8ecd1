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
_ROWS = {
    "dense_bytes": "layers, dense, bytes",
    "base_bytes": "quantized, bytes",
    "path_bytes": "corrections, bytes",
    "predicted_loss_without_path": "predicted loss without corrections",
    "predicted_loss": "predicted loss",
}


@with_recipe_options
def quantize(
    model: Model,
    output: Output,
    given: dict[str, Any],
    quantizer: Annotated[
        str | None, typer.Option(help="Quantizer; see `spectrim ls` (default rtn).")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Bits per weight.")] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Weights per quantization group.")
    ] = None,
    quantizer_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other quantizer option.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of each correction (average, by loss); 0: none.")
    ] = None,
    correction_bytes: Annotated[
        int | None, typer.Option(help="Bytes of all corrections, in place of --rank.")
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Quantize or sparsify every layer, with low-rank corrections of the error."""
    if foreign := [name for name in _FOREIGN if given[name] not in (None, [])]:
        raise InputError(
            f"--{foreign[0].replace('_', '-')} does not apply to corrections; use --rank or "
            "--correction-bytes"
        )
    if rank is not None and correction_bytes is not None:
        raise InputError("choose one of --rank and --correction-bytes")
    options = {"bits": bits, "group": group_size}
    options |= dict(map(_assigned, quantizer_option or []))
    wanted = {"quantizer": quantizer, "rank": rank, "bytes": correction_bytes}
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
    console.note(f"saved to {output}: `import spectrim`, then from_pretrained")


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
        chosen["quantizer_options"] = {}
    if wanted["rank"] is not None:
        chosen["bytes"] = None
    chosen |= {name: value for name, value in wanted.items() if value is not None}
    stated = {name: value for name, value in options.items() if value is not None}
    chosen["quantizer_options"] = chosen.get("quantizer_options", {}) | stated
    return recipe_from(values | {"correction": chosen}, "options")


def _print(config: Any, json: bool) -> None:
    facts = config.provenance["compensation"]
    if json:
        ranks = {name: entry["rank"] for name, entry in config.layers.items()}
        console.as_json(facts | {"ranks": ranks})
        return
    rows = [(what, _figure(facts[key])) for key, what in _ROWS.items() if key in facts]
    paths = (
        f" + corrections by {facts['method']}, {facts['allocation']}" if facts["method"] else ""
    )
    console.table(f"{facts['base']}{paths}", ("metric", "value"), rows)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
