"""Write a trained adapter as a plain LoRA of its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spectrim.adapters import register, save_lora, to_lora
from spectrim.checkpoint import load
from spectrim.errors import CheckpointError, InputError

CONFIG = "adapter_config.json"


def export_lora(
    checkpoint: str | Path,
    directory: str | Path,
    rank: int | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """Write the adapter of a fine-tuned `checkpoint`, or a saved adapter, and return it.

    The base model is loaded, since the directions of an adapter are those of its weights.

    Args:
        rank: of the LoRA; None: as large as needed for no error.

    Raises:
        CheckpointError: there is no adapter, or its base is not where it was.
        InputError: the adapter is a LoRA already, or the directory cannot be written.
    """
    place = _adapter_of(Path(checkpoint))
    register()
    from peft import PeftConfig, PeftModel, PeftType

    config = PeftConfig.from_pretrained(str(place))
    if config.peft_type == PeftType.LORA:
        raise InputError(f"{place} is a plain LoRA already; it loads as it is")
    base = config.base_model_name_or_path
    if not base:
        raise CheckpointError(
            f"{place / CONFIG} names no base model; set its base_model_name_or_path"
        )
    model, _ = load(base, dtype=torch.float32, trust_remote_code=trust_remote_code)
    export = to_lora(PeftModel.from_pretrained(model, str(place)), rank)
    save_lora(export, directory, overwrite)
    return export


def _adapter_of(checkpoint: Path) -> Path:
    for place in (checkpoint / "adapter", checkpoint):
        if (place / CONFIG).is_file():
            return place
    raise CheckpointError(
        f"{checkpoint} has no adapter: expected {CONFIG} there or in its directory 'adapter'; "
        "`spectrim finetune MODEL -o OUT --adapter NAME` writes one (beside a quantized base "
        "it is a part of the model)"
    )
