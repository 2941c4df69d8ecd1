"""A model type with the fields of a tiny configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
"""Fields of every configuration; a family that does not read one of them ignores it."""
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
}
"""Latent attention."""
INDEXER = {"index_topk": 32, "index_head_dim": 16, "index_n_heads": 2}
"""Sparse attention by an indexer."""
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "init_std": 0.2,
    "is_decoder": True,
}
"""The decoder of an encoder-decoder model."""
CROSS = r"encoder_attn"
"""Attention to an encoder, which no text for a decoder alone reaches."""
DECODER = {"is_decoder": True}
"""An encoder with the causal mask."""
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 24,
}
"""Linear attention by the delta rule."""
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}


@dataclass(frozen=True)
class Family:
    """A model type with what its configuration has besides `BASE`.

    Attributes:
        drop: fields of `BASE` that the configuration does not take.
        dense: regular expression on the layers of the blocks that are expected to stay dense.
        refused: regular expression on the one line with which the model is refused.
    """

    model_type: str
    fields: dict[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    name: str = ""
    dense: str = ""
    refused: str = ""

    def __str__(self) -> str:
        return self.name or self.model_type

    @property
    def class_name(self) -> str:
        return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.model_type]

    def build(self, seed: int = 0) -> PreTrainedModel:
        fields = {k: v for k, v in BASE.items() if k not in self.drop} | self.fields
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = AutoConfig.for_model(self.model_type, **fields)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            _fill_zeros(model)
        return model


@torch.no_grad()
def _fill_zeros(model: PreTrainedModel) -> None:
    """Small random values for parameters that begin as zeros, as in a trained model."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)
