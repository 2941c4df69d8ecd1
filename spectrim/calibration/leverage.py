"""Choose sequences of a larger text by the leverage of their hidden states.

    l_s = tr((C + ridge I)^-1 C_s),   C_s = sum_{t in s} P^T h_t h_t^T P,   C = sum_s C_s
    q_s = min(1, c sqrt(l_s)),   sum_s q_s = count,   w_s ~ 1 / q_s

h is the hidden state after the first quarter of the decoder blocks, where the pass over the
candidates ends, and P a fixed random projection, so that a sequence takes few numbers. Exactly
`count` sequences are drawn, each with probability q_s; the weights w_s are scaled so that the
chosen tokens count as many as all candidates: a weighted sum over tokens then estimates the sum
over all of them.

D. Woodruff, T. Yasuda, 2023, arXiv:2306.00732 (root leverage scores, here of blocks of rows).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.calibration.in_memory import batches
from spectrim.data import TokenBlocks
from spectrim.errors import CheckpointError
from spectrim.linalg.leverage import block_scores, keep_probabilities
from spectrim.models.hooks import attach_hooks, frozen_eval
from spectrim.models.targets import decoder_blocks
from spectrim.runtime.files import read_tensors, write_tensors

REFERENCE = "Woodruff and Yasuda, 2023, arXiv:2306.00732"
DEPTH = 0.25
"""Share of the decoder blocks that the scores are read after; at least one block."""
DIRECTIONS = 32
"""Columns of P: 4 kB for each candidate."""
RIDGE = 1e-3
"""Relative to the mean diagonal of C."""


def leverage_sample(
    model: nn.Module,
    candidates: TokenBlocks,
    count: int,
    tokens_per_batch: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return indices (count,), ascending, and weights (count,) float64 of chosen candidates.

    One pass over all candidates through a part of the model, without gradients.
    """
    probabilities = keep_probabilities(
        sequence_scores(model, candidates, tokens_per_batch).sqrt(), count
    )
    generator = torch.Generator().manual_seed(seed)
    rows = systematic_sample(probabilities, generator)
    weights, tokens = 1 / probabilities[rows], _tokens_of_rows(candidates)
    return rows, weights * (tokens.sum() / (weights @ tokens[rows]))


def save_sample(sample: tuple[Tensor, Tensor], path: Path) -> None:
    """Write indices and weights to one file."""
    write_tensors(path, {"rows": sample[0], "weights": sample[1]}, {"kind": "sample"})


def load_sample(path: Path) -> tuple[Tensor, Tensor]:
    """Return the sample in a file. Raises CheckpointError for another one."""
    tensors, _ = read_tensors(path)
    if set(tensors) != {"rows", "weights"}:
        raise CheckpointError(f"{path} is not a sample of sequences")
    return tensors["rows"], tensors["weights"]


def sequence_scores(model: nn.Module, candidates: TokenBlocks, tokens_per_batch: int) -> Tensor:
    """Return the block leverage of each sequence (N,) float64; the sum is the rank of C."""
    grams = []
    for hidden, mask in _early_states(model, candidates, tokens_per_batch):
        rows = (hidden.float() * mask[..., None]) @ _projection(hidden)
        grams.append((rows.mT @ rows).double().cpu())
    covariances = torch.cat(grams)
    ridge = RIDGE * float(covariances.sum(0).diagonal().mean())
    return block_scores(covariances, ridge).clamp_min(0)


def systematic_sample(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Return ascending indices, each i with probability q_i, as many as the sum of all q.

    Systematic sampling of a random order: one uniform number u, then the rows at which the
    cumulated q pass u, u + 1, ...
    """
    order = torch.randperm(len(probabilities), generator=generator)
    reached = probabilities[order].cumsum(0)
    first = torch.rand(1, generator=generator, dtype=torch.float64)
    steps = first + torch.arange(round(float(reached[-1])))
    found = torch.searchsorted(reached, steps).clamp_max(len(order) - 1)
    return order[found].unique()


class _Reached(Exception):
    """Ends a forward pass at the required block."""


@torch.no_grad()
def _early_states(
    model: nn.Module, candidates: TokenBlocks, tokens_per_batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield hidden states (B, T, d) after the first blocks, and the mask (B, T)."""
    blocks = decoder_blocks(model)
    _, last = blocks[max(1, round(DEPTH * len(blocks))) - 1]
    held: list[Tensor] = []

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        held.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    device = next(model.parameters()).device
    with frozen_eval(model), attach_hooks(after=[(last, stop)]):
        for batch in batches(candidates, tokens_per_batch, 0, device):
            attention = None if bool(batch.mask.all()) else batch.mask.long()
            try:
                model(input_ids=batch.ids, attention_mask=attention, use_cache=False)
            except _Reached:
                yield held.pop(), batch.mask


def _projection(hidden: Tensor) -> Tensor:
    """Return P (d, k), which depends on the width alone; the identity for narrow models."""
    width = hidden.shape[-1]
    if width <= DIRECTIONS:
        return torch.eye(width, device=hidden.device)
    generator = torch.Generator().manual_seed(width)
    return torch.randn(width, DIRECTIONS, generator=generator).to(hidden.device)


def _tokens_of_rows(blocks: TokenBlocks) -> Tensor:
    """Return the number of real tokens of each row (N,) float64."""
    if blocks.mask is None:
        return torch.full((len(blocks),), float(blocks.ids.shape[1]), dtype=torch.float64)
    return blocks.mask.sum(1).double()
