"""Write a compressed model as a checkpoint that plain `from_pretrained` reads."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spectrim.checkpoint.card import made_card
from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.config_entries import check_children, check_table
from spectrim.checkpoint.elastic.stored import BUDGET, check_stored
from spectrim.checkpoint.loading_errors import reason
from spectrim.checkpoint.processor_files import copy_processor
from spectrim.checkpoint.transformers_plugin import detach_quantizer, keep_names, tie_as_named
from spectrim.checkpoint.validation import check_weights, overflow_remedy
from spectrim.checkpoint.verify import verify_saved
from spectrim.errors import CheckpointError, InputError
from spectrim.layers import CompactLinear
from spectrim.models.compressible import check_no_adapters
from spectrim.models.experts import SplitExperts
from spectrim.models.kind import kind_of
from spectrim.models.replace import compact_layers, shared_bases
from spectrim.runtime.files import is_full_disk, write_text
from spectrim.runtime.output_dir import MARKER, is_spectrim_output, output_directory

_EXTRA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(md|yaml|yml|jsonl?|txt|html|csv)")
_RESERVED = re.compile(
    r"(generation_|tokenizer_|preprocessor_)?config\.json|tokenizer\.json|vocab\.(json|txt)"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|.*\.index\.json"
)


Text = str | Callable[[], str]
"""A text, or what makes it once the model is written."""


@dataclass(frozen=True)
class SaveOptions:
    """Options of saving: the files written beside the weights, and their form.

    Attributes:
        card: README.md.
        extras: Further text files by name.
        source: The original's directory or Hub name, whose processor files are copied.
        reload: Whether the result is loaded again to be compared, where memory allows.
        directories: Further directories to copy, by their names in the output.
    """

    card: Text | None = None
    extras: Mapping[str, Text] = field(default_factory=dict)
    overwrite: bool = False
    max_shard_size: str | int = "5GB"
    source: str | Path | None = None
    reload: bool = True
    directories: Mapping[str, Path] = field(default_factory=dict)


def save(model: PreTrainedModel, tokenizer: Any, directory: str | Path) -> Path:
    """Write a compressed model that loads with plain `from_pretrained`. Raise InputError."""
    config = model.config.quantization_config
    base = str(getattr(model.config, "_name_or_path", "") or "")
    options = SaveOptions(card=lambda: made_card(base, config, kind=kind_of(model)))
    return save_compressed(model, tokenizer, directory, config, options)


def save_compressed(
    model: PreTrainedModel,
    tokenizer: Any,
    directory: str | Path,
    config: SpectrimConfig,
    options: SaveOptions = SaveOptions(),
) -> Path:
    """Write model, tokenizer (or None) and texts; the directory appears whole or not at all.

    What was written is compared with the model before it appears. The model keeps `config` as
    its `quantization_config`, so a later `save_pretrained` of it writes the same.

    Raises:
        CheckpointError: `config` does not describe the model, or what was written differs.
        InputError: The directory cannot be used.
        ModelError: A weight is not finite, or the model has PEFT adapters.
    """
    prepare_saving(model, config, options)
    with output_directory(directory, options.overwrite) as partial:
        model.save_pretrained(partial, max_shard_size=options.max_shard_size)
        verify_saved(partial, model, options.reload)
        write_files(tokenizer, partial, options)
    return Path(directory)


def save_dense(
    model: PreTrainedModel,
    tokenizer: Any,
    directory: str | Path,
    provenance: Mapping[str, Any],
    options: SaveOptions = SaveOptions(),
) -> Path:
    """Write a model that is not compressed, with a file that states where it comes from.

    Raises:
        InputError: The directory cannot be used.
        ModelError: A weight is not finite, or the model has PEFT adapters.
    """
    check_no_adapters(model)
    check_weights(model, overflow_remedy(model.dtype))
    with output_directory(directory, options.overwrite) as partial:
        model.save_pretrained(partial, max_shard_size=options.max_shard_size)
        write_text(partial / MARKER, json.dumps(provenance, indent=2, sort_keys=True))
        write_files(tokenizer, partial, options)
    return Path(directory)


def prepare_saving(
    model: PreTrainedModel, config: SpectrimConfig, options: SaveOptions
) -> None:
    """Check all that can be checked before a file is written, and attach `config`."""
    for name in options.extras:
        check_extra_name(name)
    attach_config(model, config)
    check_weights(model, overflow_remedy(model.dtype))


def write_files(tokenizer: Any, directory: Path, options: SaveOptions) -> None:
    """Write all of a checkpoint but the model; what fails is a warning, the result stays."""
    if tokenizer is not None:
        with warn_of_failure("the tokenizer was not saved"):
            tokenizer.save_pretrained(directory)
    if options.source is not None:
        with warn_of_failure("files of the processor were not copied"):
            copy_processor(options.source, directory)
    for name, source in options.directories.items():
        shutil.copytree(source, directory / name, dirs_exist_ok=True)
    texts = dict(options.extras)
    if options.card is not None:
        texts["README.md"] = options.card
    for name, text in texts.items():
        with warn_of_failure(f"{name} was not written"):
            write_text(directory / name, text if isinstance(text, str) else text())


@contextmanager
def warn_of_failure(what: str) -> Iterator[None]:
    """Turn an exception inside into a warning: what follows the work must not lose it."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: {reason(error)}", stacklevel=3)


def attach_config(model: PreTrainedModel, config: SpectrimConfig) -> None:
    """Attach `config` to a model compressed in memory. Raise CheckpointError if it misfits."""
    check_no_adapters(model)
    if config.elastic is not None:
        check_stored(model, config.elastic)
        setattr(model.config, BUDGET, None)  # so that it is a keyword of from_pretrained
    else:
        _check_describes(model, config)
    if config.untied:
        model.config.tie_word_embeddings = False
    model.config.quantization_config = config
    detach_quantizer(model)
    keep_names(model)
    tie_as_named(model)


def add_text_file(directory: str | Path, name: str, text: str) -> Path:
    """Add a text file to a finished output, atomically. Raise InputError."""
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
    experts = {n: m for n, m in model.named_modules() if isinstance(m, SplitExperts)}
    split = set(experts)
    if split != set(config.split_experts):
        raise CheckpointError(
            f"the config names {len(config.split_experts)} modules of split experts, "
            f"the model has {len(split)}: {sorted(split ^ set(config.split_experts))[:3]}"
        )
    for name, module in experts.items():
        entry = config.removed_experts.get(name, {"removed": ()})
        if set(module.removed) != set(entry["removed"]):
            raise CheckpointError(
                f"the config and the model differ in removed experts: {name} misses "
                f"{module.removed} in the model and {entry['removed']} in the config"
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
