"""Tiny configurations of the causal language models of transformers, by model type."""

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


def _plain(*model_types: str) -> list[Family]:
    return [Family(model_type) for model_type in model_types]


FAMILIES: list[Family] = [
    *_plain(
        "afmoe",
        "apertus",
        "arcee",
        "aria_text",
        "beam",
        "biogpt",
        "bitnet",
        "bloom",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "cwm",
        "diffllama",
        "doge",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "flex_olmo",
        "flint",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_neox_japanese",
        "gpt_oss",
        "granite",
        "granite_swa",
        "granitemoe",
        "granitemoe_swa",
        "granitemoeshared",
        "helium",
        "hrm_text",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hy_v3",
        "hyperclovax",
        "jais2",
        "kolibri1",
        "laguna",
        "lfm2",
        "llama",
        "mellum",
        "mimo_v2_flash",
        "minimax",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "modernbert-decoder",
        "mpt",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmo_hybrid",
        "olmoe",
        "openai-gpt",
        "persimmon",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "solar_open",
        "stablelm",
        "starcoder2",
        "vaultgemma",
    ),
    Family("falcon_mamba", dense=r"dt_proj$"),
    Family("mamba", dense=r"dt_proj$"),
    Family("jetmoe", dense=r"(in|out)put_linear$"),
    Family("llama4_text", dense=r"router$"),
    Family("phimoe", dense=r"router$"),
    Family("rwkv", dense=r"attention.output$|feed_forward.value$"),
    Family("axk1", MLA | {"n_shared_experts": 1, "mlp_layer_types": ["dense", "sparse"]}),
    Family(
        "axk2", MLA | INDEXER | {"mlp_layer_types": ["dense", "sparse"]}, dense=r"indexer\."
    ),
    Family(
        "bailing_hybrid",
        MLA
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "num_experts_per_token": 2,
            "num_expert_group": 1,
        },
    ),
    Family("bamba", MAMBA | {"attn_layer_indices": [1]}, ("head_dim",)),
    Family("bart", SEQ2SEQ, dense=CROSS),
    Family("bert", DECODER, name="bert (decoder)"),
    Family("bert", name="bert (encoder)", refused="not causal"),
    Family("bert-generation", DECODER),
    Family("big_bird", DECODER | {"attention_type": "original_full"}),
    Family("bigbird_pegasus", SEQ2SEQ | {"attention_type": "original_full"}, dense=CROSS),
    Family("blenderbot", SEQ2SEQ),
    Family("blenderbot-small", SEQ2SEQ),
    Family("camembert", DECODER),
    Family("codegen", {"rotary_dim": 4}, ("head_dim",)),
    Family(
        "cpmant",
        {"dim_ff": 64, "dim_head": 8, "num_attention_heads": 4},
        refused="not causal",
    ),
    Family("ctrl", {"dff": 64}),
    Family("data2vec-text", DECODER),
    Family(
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {
                "ffn_hidden_size": 24,
                "hidden_size": 32,
                "moe_num_experts": 4,
                "moe_top_k": 2,
            },
        },
    ),
    Family("deepseek_v2", MLA | {"first_k_dense_replace": 1, "n_shared_experts": 1}),
    Family("deepseek_v3", MLA | {"first_k_dense_replace": 1}),
    Family(
        "deepseek_v32",
        MLA | INDEXER | {"mlp_layer_types": ["dense", "sparse"]},
        dense=r"indexer\.",
    ),
    Family("deepseek_v4", MLA | INDEXER, dense=r"o_a_proj$|compressor|experts"),
    Family("dots1", {"n_shared_experts": 1, "first_k_dense_replace": 1}),
    Family("electra", DECODER | {"embedding_size": 32}),
    Family("ernie", DECODER),
    Family("falcon", {"num_kv_heads": 4}, ("head_dim",)),
    Family(
        "falcon_h1",
        MAMBA | {"mamba_d_ssm": 64},
    ),
    Family(
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            "intermediate_size": [64] * 4,
        },
    ),
    Family(
        "gemma4_text",
        {
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "per_layer_config": {"1": {"head_dim": 16}},
        },
    ),
    Family("gemma4_unified_text", {"layer_types": ["sliding_attention", "full_attention"]}),
    Family("glm4_moe_lite", MLA | {"mlp_layer_types": ["dense", "sparse"]}),
    Family(
        "glm_moe_dsa",
        MLA | INDEXER | {"mlp_layer_types": ["dense", "sparse"]},
        dense=r"indexer\.",
    ),
    Family(
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        ("num_hidden_layers", "num_attention_heads"),
    ),
    Family("gptj", {"rotary_dim": 4}, ("head_dim",)),
    Family("granitemoehybrid", MAMBA | {"layer_types": ["mamba", "attention"]}),
    Family("hy_v4", MLA | INDEXER, dense=r"indexer\."),
    Family("inkling_text", dense=r"shared_experts$"),
    Family("inkling2_text"),
    Family(
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
        dense=r"dt_proj$",
    ),
    Family(
        "kimi_linear",
        MLA
        | {
            "mlp_layer_types": ["dense", "sparse"],
            "layer_types": ["linear_attention", "full_attention"],
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "num_experts_per_token": 2,
        },
    ),
    Family(
        "lfm2_moe",
        {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    Family(
        "longcat_flash",
        MLA
        | {
            "num_layers": 2,
            "ffn_hidden_size": 64,
            "zero_expert_num": 2,
            "moe_topk": 2,
            "expert_ffn_hidden_size": 24,
        },
        ("num_hidden_layers",),
        dense=r"router.classifier$",
    ),
    Family("lfm3", {"layer_types": ["conv", "full_attention"]}),
    Family("mamba2", {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}),
    Family("marian", SEQ2SEQ | {"decoder_vocab_size": 128}),
    Family("mbart", SEQ2SEQ, dense=CROSS),
    Family("megatron-bert", DECODER),
    Family("minicpm3", MLA),
    Family("minimax_m3_vl_text"),
    Family("moshi", {"ffn_dim": 64, "audio_vocab_size": 16, "num_codebooks": 2}),
    Family("mvp", SEQ2SEQ),
    Family(
        "nemotron_h",
        {
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "layers_block_type": ["mamba", "attention", "moe"],
            "num_hidden_layers": 3,
            "moe_shared_expert_intermediate_size": 24,
        },
    ),
    Family("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Family("pegasus", SEQ2SEQ),
    Family("plbart", SEQ2SEQ, dense=CROSS),
    Family(
        "prophetnet",
        {
            "num_encoder_layers": 1,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "init_std": 0.2,
            "is_decoder": True,
            "add_cross_attention": False,
        },
        ("num_hidden_layers", "num_attention_heads"),
    ),
    Family("qwen2_moe", {"shared_expert_intermediate_size": 24}),
    Family("qwen3_5_text", DELTA | {"layer_types": ["linear_attention", "full_attention"]}),
    Family("qwen3_5_moe_text", DELTA | {"layer_types": ["linear_attention", "full_attention"]}),
    Family("qwen3_next", DELTA | {"layer_types": ["linear_attention", "full_attention"]}),
    Family(
        "qwen4_exp_text",
        DELTA
        | {
            "layer_types": ["linear_attention", "indexed_attention"],
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "hc_count": 2,
            "hc_lowrank": 8,
            "ngram_vocab_size_base": 64,
            "split_ngram_parts": 2,
            "ple_embed_dim": 16,
        },
        dense=r"indexer\.",
    ),
    Family(
        "reformer",
        {
            "is_decoder": True,
            "attn_layers": ["local", "local"],
            "axial_pos_embds": False,
            "attention_head_size": 8,
            "feed_forward_size": 64,
            "local_attn_chunk_length": 8,
        },
        refused="does not depend on them",
    ),
    Family(
        "recurrent_gemma",
        {"num_hidden_layers": 3, "num_key_value_heads": 4, "lru_width": 32},
        dense=r"rg_lru$",
    ),
    Family("rembert", DECODER | {"input_embedding_size": 16, "output_embedding_size": 24}),
    Family("roberta", DECODER, name="roberta (decoder)"),
    Family("roberta", name="roberta (encoder)", refused="not causal"),
    Family("roberta-prelayernorm", DECODER),
    Family(
        "roc_bert",
        DECODER
        | {
            "pronunciation_vocab_size": 8,
            "shape_vocab_size": 8,
            "pronunciation_embed_dim": 8,
            "shape_embed_dim": 8,
        },
    ),
    Family("roformer", DECODER),
    Family("trocr", {"d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 2}, dense=CROSS),
    Family("whisper", SEQ2SEQ | {"max_target_positions": 128}, dense=CROSS),
    Family("xglm", {"ffn_dim": 64}),
    Family("xlm", {"causal": True}, name="xlm (causal)"),
    Family("xlm", name="xlm (masked)", refused="not causal"),
    Family("xlm-roberta", DECODER),
    Family("xlm-roberta-xl", DECODER),
    Family(
        "xlnet",
        {"d_model": 32, "n_head": 4, "d_inner": 64, "d_head": 8, "n_layer": 2},
        ("max_position_embeddings", "head_dim"),
        refused="not causal",
    ),
    Family("xlstm", {"embedding_dim": 32, "num_blocks": 2, "num_heads": 4, "chunk_size": 8}),
    Family("xmod", DECODER | {"default_language": "en_XX"}),
    Family("youtu", MLA),
    Family(
        "zamba",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "num_key_value_heads": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        ("head_dim",),
        dense=r"mamba$",
    ),
    Family(
        "zamba2",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "hybrid_layer_ids": [1, 3],
            "num_key_value_heads": 4,
            "n_mamba_heads": 4,
            "mamba_d_state": 8,
            "mamba_headdim": 16,
            "chunk_size": 16,
            "adapter_rank": 8,
        },
        ("head_dim",),
    ),
    Family("zaya", {"num_experts_per_tok": 1, "router_hidden_size": 16}, dense=r"experts"),
]
