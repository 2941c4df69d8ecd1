"""Write a compressed model as a checkpoint that plain `from_pretrained` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.config_entries import check_children, check_table
from spectrim.checkpoint.transformers_plugin import detach_quantizer, keep_names, tie_as_named
from spectrim.errors import CheckpointError, InputError
from spectrim.layers import CompactLinear
from spectrim.models.experts import SplitExperts
from spectrim.models.replace import compact_layers, shared_bases
from spectrim.runtime.files import is_full_disk, write_text
from spectrim.runtime.output_dir import is_spectrim_output, output_directory

_EXTRA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(md|yaml|yml|jsonl?|txt|html|csv)")
_RESERVED = re.compile(
    r"(generation_|tokenizer_|preprocessor_)?config\.json|tokenizer\.json|vocab\.(json|txt)"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|.*\.index\.json"
)


@dataclass(frozen=True)
class SaveOptions:
    """`card` is the text of README.md, `extras` are further text files by name."""

    card: str | None = None
    extras: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    max_shard_size: str | int = "5GB"


def save(model: PreTrainedModel, tokenizer: Any, directory: str | Path) -> Path:
    """Write a compressed model that loads with plain `from_pretrained`. Raises InputError."""
    return save_compressed(model, tokenizer, directory, model.config.quantization_config)


def save_compressed(
    model: PreTrainedModel,
    tokenizer: Any,
    directory: str | Path,
    config: SpectrimConfig,
    options: SaveOptions = SaveOptions(),
) -> Path:
    """Write model, tokenizer (or None) and texts; the directory appears whole or not at all.

    The model keeps `config` as its `quantization_config`, so a later `save_pretrained` of it
    writes the same. Raises CheckpointError when `config` does not describe the model,
    InputError for a directory that cannot be used.
    """
    for name in options.extras:
        check_extra_name(name)
    attach_config(model, config)
    with output_directory(directory, options.overwrite) as partial:
        model.save_pretrained(partial, max_shard_size=options.max_shard_size)
        write_texts(tokenizer, partial, options)
    return Path(directory)


def write_texts(tokenizer: Any, directory: Path, options: SaveOptions) -> None:
    """All of a checkpoint but the model."""
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    if options.card is not None:
        write_text(directory / "README.md", options.card)
    for name, text in options.extras.items():
        write_text(directory / name, text)


def attach_config(model: PreTrainedModel, config: SpectrimConfig) -> None:
    """Attach `config` to a model compressed in memory. Raises CheckpointError if it misfits."""
    _check_describes(model, config)
    if config.untied:
        model.config.tie_word_embeddings = False
    model.config.quantization_config = config
    detach_quantizer(model)
    keep_names(model)
    tie_as_named(model)


def add_text_file(directory: str | Path, name: str, text: str) -> Path:
    """Add a text file to a finished output, atomically. Raises InputError."""
    check_extra_name(name)
    directory = Path(directory)
    if not is_spectrim_output(directory):
        raise InputError(f"{directory} is not an output of spectrim; save a model there first")
    try:
        write_text(directory / name, text)
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise InputError(f"no space left on the disk for {directory / name}") from error
    return directory / name


def check_extra_name(name: str) -> None:
    if not _EXTRA_NAME.fullmatch(name) or _RESERVED.fullmatch(name):
        raise InputError(
            f"'{name}' cannot be the name of an extra file; expected a plain name that ends in "
            ".md, .yaml, .json, .jsonl, .txt, .html or .csv and is not the model's own"
        )


def _check_describes(model: PreTrainedModel, config: SpectrimConfig) -> None:
    ranks = {name: layer.rank for name, layer in compact_layers(model)}
    described = {name: entry["rank"] for name, entry in config.layers.items()}
    if wrong := sorted(n for n in ranks | described if ranks.get(n) != described.get(n)):
        name = wrong[0]
        raise CheckpointError(
            f"the config and the model differ at {len(wrong)} layers: {name} has rank "
            f"{ranks.get(name)} in the model and {described.get(name)} in the config"
        )
    check_children(model, config.inner)
    _check_bases(model, config)
    check_table(model, config.embeddings)
    if getattr(model.config, "tie_word_embeddings", False) and not config.untied:
        _check_tied(model)
    split = {name for name, module in model.named_modules() if isinstance(module, SplitExperts)}
    if split != set(config.split_experts):
        raise CheckpointError(
            f"the config names {len(config.split_experts)} modules of split experts, "
            f"the model has {len(split)}: {sorted(split ^ set(config.split_experts))[:3]}"
        )


def _check_bases(model: PreTrainedModel, config: SpectrimConfig) -> None:
    held = {name: owner for owner, users in shared_bases(model).items() for name in users[1:]}
    described = {n: entry["basis"] for n, entry in config.layers.items() if "basis" in entry}
    if wrong := sorted(n for n in held | described if held.get(n) != described.get(n)):
        raise CheckpointError(
            f"the config and the model differ in who shares a basis: {wrong[0]} uses that of "
            f"{held.get(wrong[0])} in the model and of {described.get(wrong[0])} in the config"
        )


def _check_tied(model: PreTrainedModel) -> None:
    if isinstance(model.get_output_embeddings(), CompactLinear):
        raise CheckpointError(
            "the output embedding is factored while the model ties it to the input embedding; "
            "untie it and set untied=True in the config"
        )
