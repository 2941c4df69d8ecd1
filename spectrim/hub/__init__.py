"""Save and load: importing this package makes `from_pretrained` read our checkpoints."""

from __future__ import annotations

from spectrim.hub.activate import activate, deactivate, is_active
from spectrim.hub.card import CardFacts, model_card
from spectrim.hub.checks import check_weights
from spectrim.hub.config import SpectrimConfig
from spectrim.hub.export import export_dense, export_self_contained
from spectrim.hub.export_onnx import export_onnx
from spectrim.hub.load import load, resolve, stored_dtype
from spectrim.hub.output import check_output
from spectrim.hub.quantizer import SpectrimQuantizer
from spectrim.hub.register import register
from spectrim.hub.save import SaveOptions, add_text_file, attach_config, save_compressed
from spectrim.hub.together import save_together

register()

__all__ = [
    "CardFacts",
    "SaveOptions",
    "SpectrimConfig",
    "SpectrimQuantizer",
    "activate",
    "add_text_file",
    "attach_config",
    "check_output",
    "check_weights",
    "deactivate",
    "export_dense",
    "export_onnx",
    "export_self_contained",
    "is_active",
    "load",
    "model_card",
    "register",
    "resolve",
    "save_compressed",
    "save_together",
    "stored_dtype",
]
