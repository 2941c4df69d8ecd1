"""Tiny models with a spectral adapter on them, at its start or moved away from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spectrim.adapters import ADAPTERS, config_class, with_statistics
from spectrim.data import TokenBlocks
from spectrim.data.blocks import fingerprint
from tests.tiny_models import TINY_MODELS, tiny_tokens

peft = pytest.importorskip("peft", reason="PEFT is not installed (extra spectrim[peft])")

NAMES = ADAPTERS.names()
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "effort": ({"r": 3, "project": False},),
    "milora": ({"decomposition": "svd_llm"},),
    "obd": ({"part": "residual"},),
    "salt": ({"share": 1.0}, {"share": 0.0}, {"relu": True}),
    "soka": ({"r": 3},),
    "svfit": (
        {"core": "band", "r": 6},
        {"core": "full", "r": 4, "part": "minor"},
        {"core": "random"},
    ),
}
"""Options beside the defaults that the contracts are tried with."""
CASES = [(name, {}) for name in NAMES]
CASES += [(name, options) for name, every in OPTIONS.items() for options in every]
cases = pytest.mark.parametrize(("name", "options"), CASES)
names = pytest.mark.parametrize("name", NAMES)


def blocks(rows: int = 8) -> TokenBlocks:
    ids = tiny_tokens(rows=rows, length=16)
    return TokenBlocks(ids, None, fingerprint(ids, torch.ones_like(ids)), "random", 1)


def config(name: str, model: nn.Module, **options: Any) -> Any:
    """A configuration with the statistics that it needs."""
    return with_statistics(config_class(name)(**options), model, blocks())


def adapted(name: str, model: str | nn.Module = "llama", **options: Any) -> Any:
    made = TINY_MODELS[model]() if isinstance(model, str) else model
    return peft.get_peft_model(made, config(name, made, **options)).eval()


@torch.no_grad()
def moved(model: Any, size: float = 0.05, seed: int = 0) -> Any:
    """Move every trained number, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        parameter += size * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=tiny_tokens()).logits.float()
