"""The shape that benchmarks give a Llama with random weights, from its width and depth."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


def llama_config(width: int, blocks: int, **changes: Any) -> LlamaConfig:
    """Heads of 64, four to a key and value; feed-forward 11/4 of the width, as in Llama-7B."""
    usual = {
        "vocab_size": 8192,
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_hidden_layers": blocks,
        "num_attention_heads": max(1, width // 64),
        "num_key_value_heads": max(1, width // 256),
        "max_position_embeddings": 512,
    }
    config = LlamaConfig(**(usual | changes))
    config.architectures = ["LlamaForCausalLM"]
    return config
