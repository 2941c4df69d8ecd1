"""AA-SVD: layer by layer, between the original's output on its own inputs and the prefix's.

    min_{rank r}  E || L_out^T (W (mix x + (1 - mix) x') - W_hat x') ||^2

x the original's inputs, x' those that the rewritten prefix gives. `original_input_weight` 1 is
the anchored objective of AA-SVD: every layer is asked to undo what the layers before it have
lost; where much is lost that spends the rank on noise, and 0 (`svd_llm_update`) is better.
`original_input_weight` "search" walks through all layers once for each of `candidates` on
`search_share` of the sequences, measures KL(original || compressed) on an eighth of the
sequences that no candidate was fitted on, and walks once more, with the best, on all.

Memory: both models, two arrays of hidden states, tokens x width x 4 bytes, and 2 x in x in x 8
bytes for each tensor that a stage of layers reads. Work: two to three forward passes of each
model, and a Cholesky factor and an eigenproblem per layer; the search costs as much again for
every candidate, its forward passes times `search_share`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spectrim.errors import InputError
from spectrim.refinement._sequential import inputs as sequential
from spectrim.refinement._sequential.fit import TargetMix
from spectrim.refinement._sequential.inputs import SequentialInputs, SequentialOptions
from spectrim.refinement._sequential.run import SequentialPass, rewrite
from spectrim.runtime.context import RunContext
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.losses import mean_divergence

REFERENCE = "AA-SVD, 2026, arXiv:2604.02119"
QUICK = {"original_input_weight": 0.5}
NEEDS_LOSSLESS = True
REQUIRES = sequential.REQUIRES
requires = sequential.requires
_HELD_OUT = 8
"""One in so many sequences judges the candidates."""


@dataclass(frozen=True)
class Options(SequentialOptions):
    """original_input_weight: between 0 (own inputs) and 1 (original inputs), or "search" over
    `candidates`."""

    original_input_weight: float | Literal["search"] = "search"
    candidates: tuple[float, ...] = (0.0, 0.3, 0.6, 1.0)
    search_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = (
            self.candidates
            if self.original_input_weight == "search"
            else (self.original_input_weight,)
        )
        if not numbers or not all(0 <= number <= 1 for number in numbers):
            raise InputError(
                "original_input_weight has to be a number between 0 and 1, or 'search' with "
                f"candidates between 0 and 1, got {numbers}"
            )
        if not 0 < self.search_share <= 1:
            raise InputError(
                f"search_share has to be above 0 and at most 1, got {self.search_share}"
            )


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Rewrite `inputs.compressed`.

    Raises InputError without the statistics it needs, and for a search with fewer than two
    sequences.
    """
    task = SequentialInputs("aa_svd", inputs, options, context)
    if options.original_input_weight == "search" and len(inputs.blocks) < 2:
        raise InputError(
            "the search for a mix holds sequences out and needs two or more, got "
            f"{len(inputs.blocks)}; give more sequences or set original_input_weight"
        )
    return rewrite(task, lambda walker: _constant(_chosen(walker, options)))


def _constant(mix: float) -> TargetMix:
    return lambda problem: mix


def _chosen(walker: SequentialPass, options: Options) -> float:
    """Return the mix that is set, or the candidate of smallest held-out divergence."""
    if options.original_input_weight != "search":
        return options.original_input_weight
    fitted, held_out = _split(len(walker.task.inputs.blocks), options.search_share)
    figures = walker.state.figures
    for mix in options.candidates:
        label = _label(mix)
        if label not in figures:
            walker.walk(label, fitted, _constant(mix))
            figures[label] = _measured(walker.task, held_out)
    return min(options.candidates, key=lambda mix: figures[_label(mix)])


def _label(mix: float) -> str:
    return f"KL with mix {mix:g}"


def _split(sequences: int, share: float) -> tuple[Tensor, Tensor]:
    """Return indices to fit on, and held-out ones; both spread evenly over the text."""
    rows = torch.arange(sequences)
    held_out = rows[::_HELD_OUT]
    rest = rows[rows % _HELD_OUT != 0]
    step = max(1, round(len(rest) / max(1, share * sequences)))
    return rest[::step], held_out


def _measured(task: SequentialInputs, rows: Tensor) -> float:
    chunks = rows.split(task.options.batch_size)
    return mean_divergence(task.original, task.compressed, task.tokens, chunks)
