"""Compression errors of a text for `spectrim inspect`: what is compared, and its tables."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrim.cli import console
from spectrim.cli.progress import track
from spectrim.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spectrim.data import TokenBlocks
    from spectrim.pipeline.compression_error import CompressionErrors, DocumentError

RECIPE_FILE = "spectrim_recipe.yaml"
_SHOWN = 5
_TITLE = "{}: compression error in nats per token, on its calibration text and on this one"


def errors_on(
    directory: Path, model: PreTrainedModel, data: str, tokens: int, original: str | None
) -> CompressionErrors | None:
    """Return a compressed model's errors on a text; None, with a note, without its original.

    original: default the model that its report names. Raises InputError for an original that
    is given and cannot be used.
    """
    from spectrim.models.replace import compact_layers

    recipe = directory / RECIPE_FILE
    if not recipe.is_file() or not any(compact_layers(model)):
        return None
    name = original or _named_original(directory)
    try:
        return _compared(recipe, model, name, data, tokens)
    except InputError as error:
        if original is not None:
            raise
        console.note(
            f"no compression errors of {directory}: {error}; name its original by --original"
        )
        return None


def _compared(
    recipe_file: Path, model: PreTrainedModel, name: str, data: str, tokens: int
) -> CompressionErrors:
    from spectrim.data import BlockSettings
    from spectrim.data.blocks import document_blocks
    from spectrim.pipeline.calibration_defaults import default_length
    from spectrim.pipeline.compression_error import compression_errors, own_calibration
    from spectrim.pipeline.loaded_model import load_original
    from spectrim.pipeline.presets import load_recipe
    from spectrim.runtime.cache import Cache
    from spectrim.runtime.context import RunContext

    source = load_original(name)
    context = RunContext(Cache.default(), track)
    recipe = load_recipe(str(recipe_file))
    calibration = own_calibration(source.model, source.tokenizer, recipe, context)
    length = recipe.calibration.length or default_length(source.model)
    settings = BlockSettings(length=length, max_tokens=tokens)
    blocks: TokenBlocks = document_blocks(data, source.tokenizer, settings)
    return compression_errors(source.model, model, calibration, blocks, track)


def _named_original(directory: Path) -> str:
    """Return the original that the report names. Raises InputError without one."""
    from spectrim.report.facts import FACTS_FILE, load_facts

    name = load_facts(directory / FACTS_FILE).model
    if not name:
        raise InputError(f"{directory / FACTS_FILE} names no original")
    return name


def plain(errors: CompressionErrors) -> dict[str, Any]:
    """Return the errors as JSON values."""
    layers = [asdict(layer) | {"ratio": layer.ratio} for layer in errors.layers]
    return asdict(errors) | {"layers": layers}


def print_errors(name: str, errors: CompressionErrors) -> None:
    names = console.short_names([layer.name for layer in errors.layers])
    rows = [
        (
            short,
            f"{layer.calibrated:.5f}",
            f"{layer.found:.5f}",
            f"{layer.ratio:.2f}",
            f"{layer.drift:.3f}",
        )
        for short, layer in zip(names, errors.layers, strict=True)
    ]
    head = ("layer", "calibrated", "this text", "ratio", "input drift")
    console.table(_TITLE.format(name), head, rows)
    worst = sorted(errors.documents, key=lambda document: -document.score)[:_SHOWN]
    title = f"documents farthest from the calibration, of {len(errors.documents)}"
    console.table(title, ("document", "tokens", "score", "loss increase"), _rows(errors, worst))
    console.note(
        f"score of the text {errors.score:.2f} (1: as the calibration text); rank correlation "
        f"with the loss increase of documents {_shown(errors.correlation)}, of the tokens' "
        f"errors with their divergence {_shown(errors.token_correlation)}"
    )


def _rows(errors: CompressionErrors, shown: list[DocumentError]) -> list[tuple[str, ...]]:
    return [
        (
            str(next(n for n, each in enumerate(errors.documents, 1) if each is document)),
            str(document.tokens),
            f"{document.score:.2f}",
            f"{document.loss_increase:+.4f}",
        )
        for document in shown
    ]


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
