"""Tiny mixtures of experts, split, with routers that differ in what they do to the scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.calibration import CalibrationSettings
from spectrim.calibration.routed_tokens import RoutedTokens, routed_tokens
from spectrim.data import TokenBlocks
from spectrim.models.expert_removal import Routing, find_routings
from spectrim.models.experts import fused_expert_names, split_experts
from tests.families.configs import FAMILIES
from tests.tiny_models import tiny_mixtral, tiny_moe, tiny_tokens


def family(name: str) -> PreTrainedModel:
    return next(family for family in FAMILIES if str(family) == name).build()


ROUTED: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": tiny_mixtral,
    "qwen3_moe": tiny_moe,
    "qwen2_moe": lambda: family("qwen2_moe"),
    "deepseek_v3": lambda: family("deepseek_v3"),
    "gpt_oss": lambda: family("gpt_oss"),
}


def split_model(build: Callable[[], PreTrainedModel], scale: float = 8.0) -> PreTrainedModel:
    """The model in float64, its experts split and `scale` times as large, to be felt."""
    model = build().double()
    model.set_experts_implementation("eager")
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 3:
                parameter.data.mul_(scale)
    split_experts(model, fused_expert_names(model))
    return model.eval()


@torch.no_grad()
def routings_of(model: nn.Module) -> dict[str, Routing]:
    found, _ = find_routings(model, lambda: model(input_ids=tiny_tokens(2, 16)))
    return found


def tokens_of(model: nn.Module, ids: Tensor) -> dict[str, RoutedTokens]:
    """The tokens of all blocks for rows `ids`."""
    settings = CalibrationSettings((), tokens_per_batch=24)
    blocks = TokenBlocks(ids, None, fingerprint="", source="tests", documents=1)
    with torch.enable_grad():
        return routed_tokens(model, routings_of(model), blocks, settings)
