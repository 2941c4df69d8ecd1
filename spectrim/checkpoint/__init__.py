"""Save and load: importing this package makes `from_pretrained` read our checkpoints."""

from __future__ import annotations

from spectrim.checkpoint.activation.install import activate, deactivate, is_active
from spectrim.checkpoint.adapter import adapter_base, is_adapter, load_merged
from spectrim.checkpoint.card import CardFacts, model_card
from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.elastic.entry import elastic_entry, sizes_of
from spectrim.checkpoint.elastic.model import resize
from spectrim.checkpoint.elastic.stored import stored_layer
from spectrim.checkpoint.export.dense import export_dense, export_self_contained
from spectrim.checkpoint.export.one_size import export_size
from spectrim.checkpoint.export.onnx import export_onnx
from spectrim.checkpoint.import_guard import guard_saved_configs
from spectrim.checkpoint.load import (
    check_causal,
    check_dense,
    elastic_sizes,
    find_budget,
    is_elastic,
    load,
    resolve,
    stored_dtype,
    stored_kind,
)
from spectrim.checkpoint.push_card import keep_cards
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
guard_saved_configs()
keep_cards()

__all__ = [
    "CardFacts",
    "SaveOptions",
    "SpectrimConfig",
    "SpectrimQuantizer",
    "Text",
    "activate",
    "adapter_base",
    "add_text_file",
    "attach_config",
    "check_causal",
    "check_dense",
    "check_output",
    "check_weights",
    "deactivate",
    "elastic_entry",
    "elastic_sizes",
    "export_dense",
    "export_onnx",
    "export_self_contained",
    "export_size",
    "find_budget",
    "is_active",
    "is_adapter",
    "is_elastic",
    "load",
    "load_merged",
    "model_card",
    "overflow_remedy",
    "register",
    "resize",
    "resolve",
    "save_compressed",
    "save_dense",
    "save_together",
    "sizes_of",
    "stored_dtype",
    "stored_kind",
    "stored_layer",
    "warn_of_failure",
]
