"""Train everything in the blocks on KL(original || compressed) and on hidden states.

    min  E_t[ sum_v p_t(v) (log p_t(v) - log q_t(v)) ]
         + hidden / L  sum_i E_t ||h_it - h'_it||^2 / E_t ||h_it||^2

over the factors, norms, biases and what stayed dense in the L decoder blocks; p and h are the
original's predictions and block outputs, q and h' the compressed model's. Embeddings and head
are fixed. The hidden states tell more per token than predictions alone; `hidden` = 0 leaves
them out. Of a model that holds several sizes each step trains the largest, the smallest and two
between, by the sum of the logarithms of their losses.

Memory: both models, AdamW's two moments and a gradient for each trained parameter, the
activations of one step, its tokens x width x 4 bytes for every block, and three arrays of its
tokens x vocabulary x 4 bytes, for one size at a time; with optimizer "kfac_adamw" in^2 + out^2
numbers per layer more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.hooks import evaluation_mode
from spectrim.optim import check_trainable
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import balanced_parameters
from spectrim.training.eigenbasis import basis_key, rotations
from spectrim.training.eigenbasis import requires as basis_requires
from spectrim.training.forward import Precision, Tokens
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import Scaling, divergence, scale_by_divergence
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import Schedule

REFERENCE = "Hinton et al., 2015, arXiv:1503.02531; level three of AA-SVD, arXiv:2604.02119"
QUICK = {"tokens": 1024}
ALL_SIZES = True
_NAME = "end to end"


@dataclass(frozen=True)
class Options:
    """tokens: to train on, padding included; each sequence as often as that takes.
    `warmup_ratio` is a share of the steps; gradients are clipped to the norm `max_grad_norm`;
    precision is that of the matrix products, "bfloat16" is faster where the processor
    multiplies it; optimizer: a name of `spectrim/optim/`, whose rate is `learning_rate`;
    lr_scaling: of that rate (`spectrim/training/losses.py`)."""

    tokens: int = 500_000
    batch_size: int = 4
    learning_rate: float = 5e-4
    hidden: float = 24.0
    warmup_ratio: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Precision = "float32"
    optimizer: str = "adamw"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    lr_scaling: Scaling = "none"

    def __post_init__(self) -> None:
        check_trainable(self.optimizer, self.optimizer_options)
        if self.tokens < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise InputError(
                "tokens, batch_size and learning_rate have to be positive, got "
                f"{self.tokens}, {self.batch_size} and {self.learning_rate}"
            )

    @property
    def chosen(self) -> dict[str, Any]:
        """Return the fields of a stage that name the optimizer."""
        return {"optimizer": self.optimizer, "options": self.optimizer_options}

    def schedule(self, blocks: TokenBlocks) -> Schedule:
        rows = min(self.batch_size, len(blocks))
        steps = max(1, self.tokens // (rows * blocks.ids.shape[1]))
        return Schedule.of(self, steps, rows)


def requires(options: Options) -> tuple[str, ...]:
    """Return the statistics of the original that these options make use of."""
    return basis_requires(options.optimizer)


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Train `inputs.compressed`. Raises NumericalError naming a step that is not finite."""
    original, compressed, blocks = inputs.original, inputs.compressed, inputs.blocks
    key = inputs.key("distillation", options)
    key |= basis_key(options.optimizer, inputs.statistics)
    tokens = Tokens(blocks, compressed.device, options.precision)

    def losses(rows: Tensor) -> Iterator[Tensor]:
        with torch.no_grad():
            wanted, targets = tokens.predicted(original, rows)
        real = tokens.real(rows)
        for _ in _each_size(inputs, len(run.state.losses[_NAME]), options.seed):
            logits, outputs = tokens.predicted(compressed, rows)
            away = [relative_error(*pair, real) for pair in zip(targets, outputs, strict=True)]
            hidden = sum(away) / len(away) if away else 0.0
            away_in_all = divergence(wanted, logits, real) + options.hidden * hidden
            yield away_in_all if inputs.sizes is None else relative(away_in_all)

    with evaluation_mode(original), balanced_parameters(compressed) as parameters:
        run = TrainingRun(parameters, key, context)
        if not run.finished:
            schedule = options.schedule(blocks)
            if options.lr_scaling == "kl":
                models = original, compressed
                schedule = scale_by_divergence(schedule, *models, tokens, inputs.sizes)
            run.resume()
            bases = rotations(compressed, parameters, options.optimizer, inputs.statistics)
            stage = Stage(_NAME, parameters, losses, len(blocks), bases, **options.chosen)
            run.train_stage(0, stage, schedule)
        return run.finish()


def _each_size(inputs: TrainingInputs, step: int, seed: int) -> Iterator[None]:
    """Give the model each size of a step in turn; once as it is where it has one size."""
    if inputs.sizes is None:
        yield
        return
    for budget in inputs.sizes.draw(step, seed):
        with inputs.sizes.cut(inputs.compressed, budget):
            yield


def relative(loss: Tensor) -> Tensor:
    """Return the logarithm: a size counts by the share that its loss falls by."""
    return loss.log()


def relative_error(wanted: Tensor, output: Tensor, real: Tensor) -> Tensor:
    """Squared error over squared size, both (B, T, d), on the real positions."""
    target = wanted[real].float()
    return (output[real].float() - target).square().mean() / target.square().mean()
