"""Compress a tiny model the plain way, for the tests of saving and loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.checkpoint import SpectrimConfig
from spectrim.layers import layer_class
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.replace import replace_layer
from spectrim.models.targets import find_targets
from tests.tiny_models import tiny_tokens

KINDS = ("lowrank", "pivoted", "sparse_dictionary", "sparse_plus_lowrank")


@dataclass(frozen=True)
class Saved:
    directory: Path
    logits: Tensor


def compress(model: PreTrainedModel, kind: str, rank: int = 6) -> SpectrimConfig:
    """Replace each target, experts included, by its truncated SVD; ranks differ by layer."""
    experts = fused_expert_names(model)
    split_experts(model, experts)
    entries = {}
    for index, target in enumerate(find_targets(model)):
        entries[target.name] = {"kind": kind, "rank": rank + index % 3}
        replace_by_svd(model, target.name, kind, rank + index % 3)
    return SpectrimConfig(entries, experts, provenance={"recipe": {"method": "svd"}})


def replace_by_svd(model: nn.Module, name: str, kind: str, rank: int) -> None:
    module = model.get_submodule(name)
    u, s, v = torch.linalg.svd(get_weight(module).detach().double(), full_matrices=False)
    bias = get_bias(module)
    layer = layer_class(kind).from_factors(
        u[:, :rank] * s[:rank], v[:rank], None if bias is None else bias.detach()
    )
    replace_layer(model, name, layer)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(tiny_tokens()).logits
