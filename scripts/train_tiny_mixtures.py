"""Train tiny mixtures of experts of three kinds on a text, so that their experts differ.

    python scripts/train_tiny_mixtures.py TOKENIZER --data TRAIN -o DIR [--kinds qwen,...]

Mixtral (renormalized softmax), Qwen2-MoE (softmax as it is, a shared expert) and DeepSeek-V3
(sigmoid scores, a shared expert, a first dense block): 4 blocks of 10 experts, 2 of them for a
token. Loads are balanced by the model's own loss or, for DeepSeek-V3, by the bias of its
router, which follows the loads.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training_loop import BETAS, WEIGHT_DECAY, Job, train
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)

from spectrim.data import BlockSettings, token_blocks

EXPERTS, CHOSEN, WIDTH, LENGTH, ROWS = 10, 2, 64, 128, 16
_BALANCE = 0.02
"""Of the loss that balances loads; 1e-3 of it is the step of DeepSeek's bias."""


def config_of(kind: str, vocabulary: int) -> PreTrainedConfig:
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2 * LENGTH,
        "num_experts_per_tok": CHOSEN,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "router_aux_loss_coef": _BALANCE,
    }
    if kind == "mixtral":
        return MixtralConfig(**sizes, num_local_experts=EXPERTS, intermediate_size=WIDTH)
    if kind == "qwen":
        return Qwen2MoeConfig(
            **sizes,
            num_experts=EXPERTS,
            moe_intermediate_size=WIDTH,
            shared_expert_intermediate_size=WIDTH,
            intermediate_size=2 * WIDTH,
        )
    return DeepseekV3Config(
        **sizes,
        n_routed_experts=EXPERTS,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        first_k_dense_replace=1,
        moe_intermediate_size=WIDTH,
        intermediate_size=2 * WIDTH,
        q_lora_rank=None,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
    )


def trained(kind: str, tokenizer: Any, data: str, steps: int) -> PreTrainedModel:
    """Return a model of `kind` after `steps` steps on rows drawn from the text."""
    torch.manual_seed(0)
    config = config_of(kind, len(tokenizer))
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rows = token_blocks(data, tokenizer, BlockSettings(ROWS * steps, LENGTH, seed=0)).ids
    batches = _batches(rows)
    loss = _balanced_loss if kind == "deepseek" else _loss

    def rate(step: int) -> float:
        warm, done = min(1.0, (step + 1) / 50), step / steps
        return 3e-3 * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))

    def optimizer(model: nn.Module) -> torch.optim.AdamW:
        return torch.optim.AdamW(model.parameters(), 3e-3, BETAS, weight_decay=WEIGHT_DECAY)

    job = Job(steps, lambda model, step: loss(model, next(batches)), rate, optimizer=optimizer)
    train(model, job, None, compiler=lambda model: model)
    return model


def _batches(rows: Tensor) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield rows[torch.randint(len(rows), (ROWS,), generator=generator)]


def _loss(model: Any, ids: Tensor) -> Tensor:
    output = model(input_ids=ids, labels=ids, output_router_logits=True, use_cache=False)
    return output.loss


def _balanced_loss(model: Any, ids: Tensor) -> Tensor:
    """The loss of one batch, after which the routers' biases follow their loads."""
    loads: list[tuple[Any, Tensor]] = []
    routers = [m for m in model.modules() if hasattr(m, "e_score_correction_bias")]
    hooks = [r.register_forward_hook(lambda m, i, o: loads.append((m, o[2]))) for r in routers]
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    for hook in hooks:
        hook.remove()
    for router, chosen in loads:
        count = torch.bincount(chosen.flatten(), minlength=EXPERTS).float()
        router.e_score_correction_bias += 1e-3 * torch.sign(count.mean() - count)
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", help="Directory of a model with a tokenizer.")
    parser.add_argument("--data", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--kinds", default="mixtral,qwen,deepseek")
    parser.add_argument("--steps", type=int, default=1200)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    for kind in given.kinds.split(","):
        model = trained(kind, tokenizer, given.data, given.steps)
        model.save_pretrained(given.output / kind)
        tokenizer.save_pretrained(given.output / kind)


if __name__ == "__main__":
    main()
