"""`spectrim quantize`: compress by other means than rank, and give back what that lost."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from spectrim import checkpoint
from spectrim.cli import console
from spectrim.cli.commands import (
    Json,
    Model,
    Output,
    Overwrite,
    RemoteCode,
    _load_original,
    app,
)
from spectrim.cli.options import cache_from, recipe_of, with_recipe_options
from spectrim.errors import InputError
from spectrim.pipeline.quantize import quantize as run_quantize
from spectrim.pipeline.quantize import with_correction
from spectrim.pipeline.recipe import Recipe, recipe_from
from spectrim.report.card import quantization_card
from spectrim.runtime.context import RunContext

_FOREIGN = ("budget", "layer", "refine", "probe")
"""Recipe options that say nothing about a path."""
_ROWS = {
    "dense_bytes": "layers, dense, bytes",
    "base_bytes": "compressed, bytes",
    "path_bytes": "paths, bytes",
    "predicted_loss_without_path": "predicted loss without paths",
    "predicted_loss": "predicted loss",
}


@app.command()
@with_recipe_options
def quantize(
    model: Model,
    output: Output,
    given: dict[str, Any],
    quantizer: Annotated[
        str | None, typer.Option(help="Compressor, see `spectrim ls`. Default rtn.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="The compressor's bits.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Its columns per scale.")] = None,
    quantizer_option: Annotated[
        list[str] | None, typer.Option(help="Any other of its options, as name=value.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Of each path, or on average by bytes. 0: no path.")
    ] = None,
    correction_bytes: Annotated[
        int | None, typer.Option(help="Of all paths together, in place of a rank.")
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Quantize or sparsify every layer, with a low-rank path for what that lost."""
    if foreign := [name for name in _FOREIGN if given[name] not in (None, [])]:
        raise InputError(
            f"--{foreign[0]} says nothing about a path; use --rank or --correction-bytes"
        )
    if rank is not None and correction_bytes is not None:
        raise InputError("choose one of --rank and --correction-bytes")
    options = {"bits": bits, "group": group_size}
    options |= dict(map(_assigned, quantizer_option or []))
    wanted = {"quantizer": quantizer, "rank": rank, "bytes": correction_bytes}
    recipe = with_correction(_with(recipe_of(given), wanted, options))
    checkpoint.check_output(output, overwrite)
    original, tokenizer, stored = _load_original(model, trust_remote_code)
    if recipe.save_dtype is None:
        recipe = recipe.with_changes(save_dtype=str(stored).removeprefix("torch."))
    context = RunContext(cache_from(given), console.track)
    smaller = run_quantize(original, tokenizer, recipe, context)
    config = smaller.config.quantization_config
    extras = {"spectrim_recipe.yaml": recipe.to_yaml()}
    saving = checkpoint.SaveOptions(
        card=lambda: quantization_card(model, config, recipe),
        extras=extras,
        overwrite=overwrite,
        source=model,
    )
    checkpoint.save_compressed(smaller, tokenizer, output, config, saving)
    _print(config, json)
    console.note(f"saved to {output}: `import spectrim`, then from_pretrained")


def _assigned(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--quantizer-option {text}: expected name=value")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--quantizer-option {name}: '{value}' is not a value") from error


def _with(recipe: Recipe, wanted: dict[str, Any], options: dict[str, Any]) -> Recipe:
    """The recipe's correction with what the command line gives over it."""
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


def _print(config: checkpoint.SpectrimConfig, json: bool) -> None:
    facts = config.provenance["compensation"]
    if json:
        ranks = {name: entry["rank"] for name, entry in config.layers.items()}
        console.as_json(facts | {"ranks": ranks})
        return
    rows = [(what, _figure(facts[key])) for key, what in _ROWS.items() if key in facts]
    paths = f" + paths by {facts['method']}, {facts['allocation']}" if facts["method"] else ""
    console.table(f"{facts['base']}{paths}", ("figure", "value"), rows)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
