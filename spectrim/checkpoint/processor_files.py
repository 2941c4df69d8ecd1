"""Copy the files of a multimodal model's processor to a checkpoint made from it."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.utils import cached_file

from spectrim.checkpoint.load import resolve
from spectrim.errors import InputError

_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "feature_extractor_config.json",
    "audio_tokenizer_config.json",
    "chat_template.json",
)


def copy_processor(source: str | Path, directory: Path) -> None:
    """Copy the processor's files of `source`, a directory or Hub name, to `directory`.

    A model that is known by another name only has none to copy.
    """
    try:
        origin = resolve(source)
    except InputError:
        return
    for name in _FILES:
        path = origin / name if isinstance(origin, Path) else _download(origin, name)
        if path is not None and path.is_file() and not (directory / name).exists():
            shutil.copyfile(path, directory / name)


def _download(source: str, name: str) -> Path | None:
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)
