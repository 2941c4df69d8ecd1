"""Identify the weights of a model in cache keys."""

from __future__ import annotations

import hashlib

from torch import nn

_SAMPLES = 1024


def model_fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes and an even sample of every parameter's values."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // _SAMPLES)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()
