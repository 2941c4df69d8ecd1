"""Models whose projections are of mixed kinds, as a fused layer has to hold them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from spectrim.checkpoint import SpectrimConfig, save_compressed
from spectrim.layers.sparse_plus_lowrank import SparsePlusLowRankLinear
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.replace import share_basis
from spectrim.models.targets import find_targets
from tests.checkpoint.compressing import replace_by_svd
from tests.tiny_models import randomize_biases, tiny_tokenizer

DENSE = "dense"


def compress_mixed(model, kinds: Sequence[str], fraction: float = 0.6) -> SpectrimConfig:
    """Replace the targets by truncated SVDs, of `kinds` in turn (dense: left as it is), with
    ranks that differ by layer."""
    entries = {}
    for index, (target, kind) in enumerate(zip(find_targets(model), cycle(kinds))):
        if kind == DENSE:
            continue
        rank = max(1, int(min(target.shape) * fraction) - index % 4)
        replace_by_svd(model, target.name, kind, rank)
        layer = model.get_submodule(target.name)
        if isinstance(layer, SparsePlusLowRankLinear):
            _fill(layer, seed=index)
        entries[target.name] = {"kind": kind, "rank": rank}
    return SpectrimConfig(entries, provenance={"recipe": {"method": "svd"}})


@torch.no_grad()
def _fill(layer: SparsePlusLowRankLinear, seed: int) -> None:
    """Draw the free entries, which are zero in a layer made of factors."""
    generator = torch.Generator().manual_seed(seed)
    layer.values.copy_(0.2 * torch.randn(layer.values.shape, generator=generator))


def compress_shared(model, suffixes: Sequence[str], rank: int) -> SpectrimConfig:
    """One basis for all layers whose name ends with a suffix, for each of `suffixes`."""
    entries = {}
    for suffix in suffixes:
        names = [target.name for target in find_targets(model) if target.name.endswith(suffix)]
        weights = [get_weight(model.get_submodule(n)).detach().double() for n in names]
        u, s, v = torch.linalg.svd(torch.cat(weights), full_matrices=False)
        lefts = (u[:, :rank] * s[:rank]).split([len(weight) for weight in weights])
        biases = {name: get_bias(model.get_submodule(name)) for name in names}
        share_basis(model, dict(zip(names, lefts, strict=True)), v[:rank], biases)
        for name in names:
            entries[name] = {"kind": "shared_basis", "rank": rank}
            if name != names[0]:
                entries[name]["basis"] = names[0]
    return SpectrimConfig(entries, provenance={"recipe": {"method": "svd"}})


def small_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """`Conv1D` layers with biases, q, k and v in one, tied."""
    config = GPT2Config(
        vocab_size=128,
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
    randomize_biases(model, seed)
    return model


def small_qwen2(seed: int = 0) -> Qwen2ForCausalLM:
    """Biases on q, k and v, grouped-query attention, heads of a width that vLLM knows; its
    logits are far enough apart that rounding does not change which is largest."""
    config = Qwen2Config(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).eval()
    randomize_biases(model, seed)
    return model


@torch.no_grad()
def greedy(model, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """`count` tokens after each prompt, the likeliest each time, with no token that ends it."""
    found = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def save(model, config: SpectrimConfig, directory: Path, tokenizer=None) -> Path:
    return save_compressed(model, tokenizer or tiny_tokenizer(), directory, config)
