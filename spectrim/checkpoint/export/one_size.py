"""One size of an elastic checkpoint, written as a compressed checkpoint of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectrim.checkpoint.load import elastic_sizes, load
from spectrim.checkpoint.save import SaveOptions, save_compressed


def export_size(
    checkpoint: str | Path,
    directory: str | Path,
    size: Mapping[str, Any],
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write one size of an elastic `checkpoint`.

    Args:
        size: one of `budget`, `target_loss` and `size`, as `load` takes them.

    Raises:
        InputError: the checkpoint is not elastic or has no such size, or the directory cannot
            be written.
    """
    elastic_sizes(checkpoint)
    options = {"dtype": "auto", "trust_remote_code": trust_remote_code}
    model, tokenizer = load(checkpoint, **size, **options)
    config = model.config.quantization_config
    saving = SaveOptions(overwrite=overwrite, source=checkpoint)
    return save_compressed(model, tokenizer, directory, config, saving)
