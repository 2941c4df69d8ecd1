"""Train each block to return the original's output on the refined prefix's inputs.

    min  E_t ||F_i(x_t) - G_i(x'_t)||^2 / E_t ||F_i(x_t)||^2

F_i and G_i the original and the compressed block i, x the original model's hidden states and
x' those of the compressed model with blocks 1 ... i - 1 already refined. Factors, norms, biases
and what stayed dense in the block are trained. A basis that layers of several blocks
share stays fixed, since the later ones' coefficients are made for it: `distillation` trains it.

Memory: both models, AdamW's two moments and a gradient for one block, the activations of one
step through one block, and two arrays of hidden states, tokens x width x 4 bytes each; with
optimizer "kfac_adamw" in^2 + out^2 numbers per layer more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from spectrim.data import TokenBlocks
from spectrim.errors import InputError
from spectrim.models.hooks import evaluation_mode
from spectrim.models.replace import shared_bases
from spectrim.optim import check_trainable
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import Parameters, balanced_parameters
from spectrim.training.eigenbasis import Rotations, basis_key, rotations
from spectrim.training.eigenbasis import requires as basis_requires
from spectrim.training.forward import BlockRunner, Precision, Tokens
from spectrim.training.inputs import Losses, TrainingInputs
from spectrim.training.loop import Stage
from spectrim.training.losses import Scaling, scale_by_divergence
from spectrim.training.output_metric import output_roots
from spectrim.training.run import TrainingRun
from spectrim.training.schedule import Schedule

REFERENCE = "AA-SVD, 2026, arXiv:2604.02119"
QUICK = {"epochs": 4}


@dataclass(frozen=True)
class Options:
    """epochs: passes over the sequences for each block, or tokens: to train each block on,
    padding included, in their place; `warmup_ratio` is a share of the steps; precision is that
    of the matrix products ("float32" or "bfloat16"); optimizer: a name of `spectrim/optim/`,
    whose rate is `learning_rate`; lr_scaling: of that rate (`spectrim/training/losses.py`);
    out_metric "gradient": errors weighted by their cost."""

    epochs: int = 8
    tokens: int | None = None
    batch_size: int = 4
    learning_rate: float = 1e-3
    warmup_ratio: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Precision = "float32"
    optimizer: str = "adamw"
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    lr_scaling: Scaling = "none"
    out_metric: Literal["identity", "gradient"] = "identity"

    def __post_init__(self) -> None:
        check_trainable(self.optimizer, self.optimizer_options)
        numbers = self.epochs, self.tokens or 1, self.batch_size, self.learning_rate
        if min(numbers) <= 0 or self.tokens == 0:
            raise InputError(
                "epochs, tokens, batch_size and learning_rate have to be positive, got "
                f"{self.epochs}, {self.tokens}, {self.batch_size} and "
                f"{self.learning_rate}"
            )

    @property
    def chosen(self) -> dict[str, Any]:
        """Return the fields of a stage that name the optimizer."""
        return {"optimizer": self.optimizer, "options": self.optimizer_options}

    def schedule(self, blocks: TokenBlocks) -> Schedule:
        sequences, length = blocks.ids.shape
        rows = min(self.batch_size, sequences)
        steps = self.epochs * (sequences // rows)
        if self.tokens is not None:
            steps = max(1, self.tokens // (rows * length))
        return Schedule.of(self, steps, rows)


def requires(options: Options) -> tuple[str, ...]:
    """Return the statistics of the original that these options make use of."""
    return basis_requires(options.optimizer)


def refine(inputs: TrainingInputs, options: Options, context: RunContext) -> Losses:
    """Train `inputs.compressed`. Raises NumericalError naming a step that is not finite."""
    original, compressed, blocks = inputs.original, inputs.compressed, inputs.blocks
    key = inputs.key("block_distillation", options)
    key |= basis_key(options.optimizer, inputs.statistics)
    schedule = options.schedule(blocks)
    tokens = Tokens(blocks, compressed.device, options.precision)
    with evaluation_mode(original), balanced_parameters(compressed) as parameters:
        run = TrainingRun(parameters, key, context)
        if not run.finished:
            if options.lr_scaling == "kl":
                schedule = scale_by_divergence(schedule, original, compressed, tokens)
            run.resume()
            runners = BlockRunner(original, tokens), BlockRunner(compressed, tokens)
            gradient = options.out_metric == "gradient"
            roots = output_roots(original, tokens, schedule.rows) if gradient else []
            pair = _Pair(*runners, schedule.rows, roots)
            bases = rotations(compressed, parameters, options.optimizer, inputs.statistics)
            for number, stage in enumerate(pair.stages(parameters, bases)):
                run.train_stage(number, replace(stage, **options.chosen), schedule)
        return run.finish()


class _Pair:
    """Both models between two blocks: `inputs` x' of the compressed, `targets` F_i(x)."""

    def __init__(
        self, original: BlockRunner, compressed: BlockRunner, rows: int, roots: list[Tensor]
    ):
        self.original = original
        self.compressed = compressed
        self.tokens = compressed.tokens
        self.rows = rows
        self.inputs = self._first(compressed)
        self.targets = self._first(original)
        self.size = 1.0
        self.roots = roots
        self.fixed = self._bases_of_several()

    def stages(self, parameters: Parameters, bases: Rotations) -> Iterator[Stage]:
        """Yield one stage per block; the next begins with the block as it is by then."""
        count = len(self.compressed.blocks)
        for number, (name, _) in enumerate(self.compressed.blocks):
            self._advance(self.original, number, self.targets)
            self.size = self._mean_square(number)
            inside = {
                n: p
                for n, p in parameters.items()
                if n.startswith(name + ".") and id(p) not in self.fixed
            }
            loss = partial(self._loss, number)
            own = {n: rotation for n, rotation in bases.items() if n in inside}
            yield Stage(f"block {number + 1} of {count}", inside, loss, len(self.tokens), own)
            self._advance(self.compressed, number, self.inputs)

    def _bases_of_several(self) -> set[int]:
        """Parameters of bases that layers of more than one block use, by identity."""
        places = [name + "." for name, _ in self.compressed.blocks]
        found: set[int] = set()
        for owner, names in shared_bases(self.compressed.model).items():
            if not any(all(n.startswith(place) for n in names) for place in places):
                basis = self.compressed.model.get_submodule(f"{owner}.right")
                found |= {id(parameter) for parameter in basis.parameters()}
        return found

    def _loss(self, number: int, rows: Tensor) -> Tensor:
        output = self.compressed.output(number, self.inputs[rows], rows)
        real = self.tokens.real(rows)
        errors = self._weighted(number, output[real].float() - self.targets[rows][real])
        return errors.square().mean() / self.size

    def _weighted(self, number: int, values: Tensor) -> Tensor:
        """(n, d) in the coordinates in which a square is what an error costs."""
        return values @ self.roots[number] if self.roots else values

    @torch.no_grad()
    def _first(self, runner: BlockRunner) -> Tensor:
        """(N, T, d): what the first block is given, a few sequences at a time."""
        return torch.cat([runner.first_input(rows).float() for rows in self._chunks()])

    @torch.no_grad()
    def _advance(self, runner: BlockRunner, number: int, hidden: Tensor) -> None:
        """Block `number`'s outputs in place of its inputs (N, T, d)."""
        for rows in self._chunks():
            hidden[rows] = runner.output(number, hidden[rows], rows).float()

    def _chunks(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.tokens)).split(self.rows)

    def _mean_square(self, number: int) -> float:
        sums = []
        for n in range(len(self.tokens)):
            real = self.tokens.real(torch.tensor([n]))[0]
            sums.append(self._weighted(number, self.targets[n][real]).double().square().mean())
        return max(float(torch.stack(sums).mean()), torch.finfo(torch.float32).tiny)
