"""Save and load: importing this package makes `from_pretrained` read our checkpoints."""

from __future__ import annotations

from spectrim.checkpoint.activation.install import activate, deactivate, is_active
from spectrim.checkpoint.card import CardFacts, model_card
from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.export.dense import export_dense, export_self_contained
from spectrim.checkpoint.export.onnx import export_onnx
from spectrim.checkpoint.load import check_dense, load, resolve, stored_dtype
from spectrim.checkpoint.save import (
    SaveOptions,
    Text,
    add_text_file,
    attach_config,
    save_compressed,
    save_dense,
    warn_of_failure,
)
from spectrim.checkpoint.save_distributed import save_together
from spectrim.checkpoint.transformers_plugin import SpectrimQuantizer, register
from spectrim.checkpoint.validation import check_weights, overflow_remedy
from spectrim.runtime.output_dir import check_output

register()

__all__ = [
    "CardFacts",
    "SaveOptions",
    "SpectrimConfig",
    "SpectrimQuantizer",
    "Text",
    "activate",
    "add_text_file",
    "attach_config",
    "check_dense",
    "check_output",
    "check_weights",
    "deactivate",
    "export_dense",
    "export_onnx",
    "export_self_contained",
    "is_active",
    "load",
    "model_card",
    "overflow_remedy",
    "register",
    "resolve",
    "save_compressed",
    "save_dense",
    "save_together",
    "stored_dtype",
    "warn_of_failure",
]
