"""Make transformers know our `quant_method`."""

from __future__ import annotations

from transformers.quantizers import auto

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.transformers_plugin import SpectrimQuantizer
from spectrim.version import QUANT_METHOD


def register() -> None:
    """Register the plug-in, in the place of an earlier import of it or of a stand-in."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.pop(QUANT_METHOD, None)
    auto.AUTO_QUANTIZER_MAPPING.pop(QUANT_METHOD, None)
    auto.register_quantization_config(QUANT_METHOD)(SpectrimConfig)
    auto.register_quantizer(QUANT_METHOD)(SpectrimQuantizer)
