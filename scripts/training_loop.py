"""The loop that trains the models of these scripts: AdamW, stopped and continued.

    parameters  <-  AdamW(gradient of loss(model, step), rate(step)), weight decay on matrices

What a step sees depends on its number alone, so a run that was stopped goes on to the same end
from its state file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
LINE_EVERY, SAVE_EVERY = 50, 250


def small_llama(vocabulary: int, width: int, **more: Any) -> LlamaForCausalLM:
    """A Llama of four blocks with tied embeddings; its first ids are of special tokens."""
    usual = {"num_hidden_layers": 4, "tie_word_embeddings": True}
    special = {"bos_token_id": 0, "eos_token_id": 1}
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=width, **usual, **special, **more)
    return LlamaForCausalLM(config)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


@dataclass(frozen=True)
class Job:
    """loss and rate of a step by its number; `check` is called with the model at every save
    and returns a line about it. A run without a state file begins at step `first`."""

    steps: int
    loss: Callable[[nn.Module, int], Tensor]
    rate: Callable[[int], float]
    check: Callable[[Any], str] = lambda model: ""
    first: int = 0
    optimizer: Callable[[nn.Module], torch.optim.AdamW] = adamw


def train(
    model: nn.Module,
    job: Job,
    state_file: Path | None,
    compiler: Callable[[nn.Module], Any] = torch.compile,
) -> float:
    """Trains `model` in place to the end of the job; seconds, those before a stop included.

    state_file: None for a run that is not continued.
    """
    optimizer = job.optimizer(model.train())
    first, seconds = _taken_up(model, optimizer, state_file) or (job.first, 0.0)
    compiled = compiler(model)
    start = time.monotonic() - seconds
    for step in range(first, job.steps):
        for group in optimizer.param_groups:
            group["lr"] = job.rate(step)
        loss = job.loss(compiled, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LINE_EVERY == 0:
            spent = time.monotonic() - start
            print(f"step {step}/{job.steps} loss {loss.item():.4f} {spent:.0f}s", flush=True)
        if state_file is not None and (step + 1) % SAVE_EVERY == 0:
            _save(model, optimizer, state_file, (step + 1, time.monotonic() - start))
            print(job.check(model), flush=True)
    model.eval()
    return time.monotonic() - start


def _taken_up(
    model: nn.Module, optimizer: torch.optim.Optimizer, state_file: Path | None
) -> tuple[int, float] | None:
    """Steps done and seconds spent, where there is a state file."""
    if state_file is None or not state_file.exists():
        return None
    state = torch.load(state_file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


def _save(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state_file: Path,
    done: tuple[int, float],
) -> None:
    """Whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    partial = state_file.with_suffix(".partial")
    torch.save(state | {"step": done[0], "seconds": done[1]}, partial)
    os.replace(partial, state_file)
