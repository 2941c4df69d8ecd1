"""The plug-in through which vLLM serves compressed checkpoints.

vLLM finds it by the entry point group `vllm.general_plugins` and the checkpoint's
`quant_method`. It needs torch and vLLM alone: nothing here imports `spectrim`, whose
transformers code would have to agree with whatever transformers vLLM holds.
"""

from __future__ import annotations

QUANT_METHOD = "spectrim"


def register() -> None:
    """Register our `quant_method`; vLLM calls this in each process, more than once."""
    from vllm.model_executor.layers import quantization

    from spectrim_vllm.config import SpectrimConfig

    quantization.register_quantization_config(QUANT_METHOD)(SpectrimConfig)
