"""Merge a PEFT adapter into the model that it was trained on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from spectrim.checkpoint.load import has_tokenizer, load, load_tokenizer, resolve
from spectrim.checkpoint.loading_errors import explain
from spectrim.checkpoint.validation import ADAPTER, CONFIG, check_weights, read_json
from spectrim.errors import CheckpointError, InputError, ModelError
from spectrim.models.kind import SPEECH, kind_of

_WEIGHTS = "adapter_model.safetensors"
_ADAPTERS_OWN = "adapter_*"
BESIDE = "spectrim-base-"
"""Beginning of the name of a directory of links to a model that an adapter lies beside."""


def is_adapter(name: str | Path) -> bool:
    """Return whether `name` is a directory with a PEFT adapter."""
    place = resolve(name)
    return isinstance(place, Path) and (place / ADAPTER).is_file()


def adapter_base(name: str | Path) -> str:
    """Return what an adapter is merged into: the model beside it, else the one that it names.

    Raises InputError for what is no directory of an adapter, CheckpointError for one that names
    no base.
    """
    place = _adapter_directory(name)
    if _has_model(place):
        return _without_adapter(place).name
    base = read_json(place / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{place / ADAPTER} names no base_model_name_or_path; write the base's directory "
            "there"
        )
    return base


def load_merged(name: str | Path, **options: Any) -> tuple[PreTrainedModel, Any]:
    """Return the base with the adapter `name` merged into it, and the adapter's tokenizer.

    Args:
        name: A directory of an adapter, which may hold its model too.
        options: Of `load`.

    Raises:
        InputError: PEFT is not installed, or `name` is no adapter.
        CheckpointError: The adapter is damaged, or does not fit its base.
        ModelError: A merged weight is not finite, or this kind of adapter cannot be merged.
    """
    place = _adapter_directory(name)
    _check_adapter(place)
    model, tokenizer = load(adapter_base(name), **options)
    merged = _merged(model, place)
    check_weights(merged, f"the adapter {place} does not fit its base")
    if has_tokenizer(place) and kind_of(merged) is not SPEECH:
        tokenizer = load_tokenizer(place, options)
    return merged, tokenizer


def _merged(model: PreTrainedModel, place: Path) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(
            "merging an adapter needs peft: pip install 'spectrim[peft]'"
        ) from error
    with explain(place):
        adapted: Any = PeftModel.from_pretrained(model, str(place))
        if not hasattr(adapted.base_model, "merge_and_unload"):
            kind = type(adapted).__name__
            raise ModelError(f"{place} is an adapter that no weight can take up ({kind})")
        merged: PreTrainedModel = adapted.merge_and_unload()
    return merged.eval()


def _adapter_directory(name: str | Path) -> Path:
    if is_adapter(name):
        return Path(resolve(name))
    raise InputError(
        f"{name} is no directory of a PEFT adapter (no {ADAPTER}); leave out --merge-adapter"
    )


def _check_adapter(place: Path) -> None:
    """Refuse what would run code: pickled weights, and modules that a file names."""
    if not (place / _WEIGHTS).is_file():
        raise CheckpointError(f"{place} has no {_WEIGHTS}; save the adapter with safetensors")
    settings = read_json(place / ADAPTER)
    if settings.get("megatron_config") is not None:
        raise ModelError(
            f"{place} is an adapter of Megatron, which is not read; merge it there"
        )
    if settings.get("layer_replication"):
        raise ModelError(
            f"{place} is an adapter that repeats layers of its base (layer_replication): their "
            "weights are one, and cannot take up several changes"
        )


def _has_model(place: Path) -> bool:
    own = [file for file in place.glob("*.safetensors") if file.name != _WEIGHTS]
    return (place / CONFIG).is_file() and bool(own)


@cache
def _without_adapter(place: Path) -> TemporaryDirectory[str]:
    """Return a directory of links to all but the adapter's files, until this process ends."""
    links = TemporaryDirectory(prefix=BESIDE)
    adapters = set(place.glob(_ADAPTERS_OWN))
    for file in place.iterdir():
        if file not in adapters:
            (Path(links.name) / file.name).symlink_to(file.resolve())
    return links
