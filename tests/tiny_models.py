"""Tiny seeded models of many architectures, built from their configurations alone."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    CLIPVisionConfig,
    DistilBertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3MoeConfig,
    RobertaConfig,
    T5Config,
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

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
}
_NAMES = ("bad", "fair", "good")
_CLASSES = {
    "id2label": dict(enumerate(_NAMES)),
    "label2id": {n: i for i, n in enumerate(_NAMES)},
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


def tiny_t5(seed: int = 0) -> PreTrainedModel:
    """T5: relative positions, gated feed-forward layers, one table for both sides."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_ff=64,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=2,
        eos_token_id=1,
        decoder_start_token_id=2,
    )
    return _build(config, seed, AutoModelForSeq2SeqLM)


def tiny_bart(seed: int = 0) -> PreTrainedModel:
    """BART: learned positions, biases, a shift of the targets that starts with EOS."""
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    model = _build(config, seed, AutoModelForSeq2SeqLM)
    randomize_biases(model, seed)
    return model


def tiny_bert_classifier(seed: int = 0) -> PreTrainedModel:
    """BERT with three named classes."""
    return _classifier(BertConfig(**_ENCODER, **_CLASSES), seed)


def tiny_roberta_classifier(seed: int = 0) -> PreTrainedModel:
    """RoBERTa: positions are counted from the padding token's id on."""
    sizes = _ENCODER | {"max_position_embeddings": 67, "type_vocab_size": 1}
    return _classifier(RobertaConfig(**sizes, **_CLASSES), seed)


def tiny_distilbert_classifier(seed: int = 0) -> PreTrainedModel:
    """DistilBERT, which names no blocks and takes no token types."""
    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
        pad_token_id=2,
        **_CLASSES,
    )
    return _classifier(config, seed)


def tiny_llama_classifier(seed: int = 0, pad: int | None = None) -> PreTrainedModel:
    """Llama that reads the class at the last token; without a padding token row by row."""
    config = LlamaConfig(**_SIZES, num_key_value_heads=4, pad_token_id=pad, **_CLASSES)
    return _classifier(config, seed)


def _classifier(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    model = _build(config, seed, AutoModelForSequenceClassification)
    randomize_biases(model, seed)
    return model


TINY_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "gqa": tiny_gqa,
    "tied": tiny_tied,
    "qwen2_bias": tiny_qwen2_bias,
    "gpt2": tiny_gpt2,
    "moe": tiny_moe,
    "mixtral": tiny_mixtral,
}


def tiny_llava(seed: int = 0) -> PreTrainedModel:
    """LLaVA: a vision tower and a projector beside a Llama."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 32,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**_SIZES, num_key_value_heads=4),
        image_token_index=VOCABULARY - 1,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return _build(config, seed, AutoModelForImageTextToText)


def tiny_qwen2_vl(seed: int = 0) -> PreTrainedModel:
    """Qwen2-VL: positions in three parts, and a vision tower of fused projections."""
    text = _SIZES | {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
        },
    }
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    places = {"image_token_id": 125, "video_token_id": 126, "vision_start_token_id": 124}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        vision_end_token_id=123,
        tie_word_embeddings=False,
        **places,
    )
    return _build(config, seed, AutoModelForImageTextToText)


IMAGE_TEXT_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llava": tiny_llava,
    "qwen2_vl": tiny_qwen2_vl,
}
LABELED_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": tiny_t5,
    "bart": tiny_bart,
    "bert": tiny_bert_classifier,
    "roberta": tiny_roberta_classifier,
    "distilbert": tiny_distilbert_classifier,
    "llama": tiny_llama_classifier,
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


def _build(
    config: PreTrainedConfig, seed: int, loader: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loader.from_config(config, dtype=torch.float32).eval()


@torch.no_grad()
def randomize_biases(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
