"""GGUF files as models: read by transformers, their weights dequantized."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import is_gguf_available

from spectrim.checkpoint.loading_errors import explain
from spectrim.checkpoint.validation import check_loaded, check_weights
from spectrim.errors import CheckpointError, InputError

MAGIC = b"GGUF"


def is_gguf(source: Path | str) -> bool:
    """Return whether `source` is a file that is named or begins as GGUF."""
    if not isinstance(source, Path) or not source.is_file():
        return False
    with source.open("rb") as file:
        return source.suffix.lower() == ".gguf" or file.read(len(MAGIC)) == MAGIC


def load_gguf(file: Path, options: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Return model and tokenizer of a GGUF file, in the dtype of `options`.

    Warns (UserWarning) that quantized weights are dequantized: the model is the rounded one.

    Raises:
        InputError: the package `gguf` is missing.
        CheckpointError: the file is damaged, or of a model that transformers cannot read.
        ModelError: weights are not finite.
    """
    if not is_gguf_available():
        raise InputError(f"{file} is a GGUF file; reading it needs `pip install gguf`")
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{file} does not begin as a GGUF file; download it again")
    place, loader = {"gguf_file": file.name}, cast(Any, AutoModelForCausalLM)
    with explain(file):
        model, info = loader.from_pretrained(
            file.parent, output_loading_info=True, **place, **_dequantized(), **options
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
    check_loaded(info, str(file))
    if getattr(model, "is_quantized", False):  # by its history alone
        model.hf_quantizer.remove_quantization_config(model)
    check_weights(model)
    warnings.warn(
        f"{file.name}: the weights of a GGUF file are dequantized; results are compared with "
        "these rounded weights, and llama.cpp reads them only after a new conversion",
        stacklevel=3,
    )
    return model, tokenizer


def _dequantized() -> dict[str, Any]:
    """Return the option of those versions of transformers that keep blocks packed."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}
