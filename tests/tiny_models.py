"""Tiny seeded models of many architectures, built from their configurations alone."""

from __future__ import annotations

import string
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3MoeConfig,
)

VOCABULARY = 128
BOS, EOS = "<s>", "</s>"
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}

_STATE_SPACE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    """Plain multi-head attention, untied."""
    return _build(LlamaConfig(**_SIZES, num_key_value_heads=4), seed)


def tiny_gqa(seed: int = 0) -> PreTrainedModel:
    """Grouped-query attention, untied, hidden size unlike the others."""
    sizes = _SIZES | {"hidden_size": 48, "intermediate_size": 72}
    return _build(LlamaConfig(**sizes, num_key_value_heads=2), seed)


def tiny_tied(seed: int = 0) -> PreTrainedModel:
    """The output embedding is the input embedding."""
    sizes = _SIZES | {"tie_word_embeddings": True}
    return _build(LlamaConfig(**sizes, num_key_value_heads=4), seed)


def tiny_qwen2_bias(seed: int = 0) -> PreTrainedModel:
    """Biases on q, k and v."""
    model = _build(Qwen2Config(**_SIZES, num_key_value_heads=2), seed)
    randomize_biases(model, seed)
    return model


def tiny_gpt2(seed: int = 0) -> PreTrainedModel:
    """`Conv1D` layers with biases, fused q/k/v, tied."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = _build(config, seed)
    randomize_biases(model, seed)
    return model


def tiny_moe(seed: int = 0) -> PreTrainedModel:
    """Qwen3-MoE: fused experts of a width of their own."""
    config = Qwen3MoeConfig(
        **_SIZES,
        num_key_value_heads=2,
        head_dim=8,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    return _build(config, seed)


def tiny_mixtral(seed: int = 0) -> PreTrainedModel:
    """Mixtral: fused experts that other names are given on disk."""
    config = MixtralConfig(
        **_SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    return _build(config, seed)


def tiny_gemma(seed: int = 0) -> PreTrainedModel:
    """Gemma 3: local attention in one block, global in the next, and a scaled embedding."""
    config = Gemma3TextConfig(
        **_SIZES,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    return _build(config, seed)


def tiny_mamba(seed: int = 0) -> PreTrainedModel:
    """Mamba: a selective state space whose time steps' projection is read, not called."""
    return _build(MambaConfig(**_STATE_SPACE), seed)


def tiny_mamba2(seed: int = 0) -> PreTrainedModel:
    """Mamba-2: heads with one decay each."""
    sizes = _STATE_SPACE | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}
    return _build(Mamba2Config(**sizes), seed)


TINY_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "gqa": tiny_gqa,
    "tied": tiny_tied,
    "qwen2_bias": tiny_qwen2_bias,
    "gpt2": tiny_gpt2,
    "moe": tiny_moe,
    "mixtral": tiny_mixtral,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; ids 0 and 1 are bos and eos."""
    characters = [BOS, EOS, "<unk>", *string.printable]
    vocabulary = {character: index for index, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token="<unk>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_tokenizer`, but nothing is added to a text; BOS and EOS are still known."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    return tokenizer


def tiny_tokens(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids (rows, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, len(string.printable) + 3, (rows, length), generator=generator)


def _build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@torch.no_grad()
def randomize_biases(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
