"""Random and leverage-sampled calibration rows on mixed text: the excess of the predicted loss.

    python benchmarks/sampling_table.py MODEL --common TEXT --rare TEXT [--share 0.05]

Calibrates on `--sequences` rows at random, on `--factor` times as many, and by
`--sampling leverage` out of these; `--repeats` draws of rows of which `--share` are of the rare
text. Each result is cut to `--budget` and judged in the metrics of a long calibration on other
rows of each text: half the weighted squared error, nats per token, which is what the quadratic
model of the loss says of the factors. Columns: mean and standard error on the common text, on
the rare text, and on the mixture; seconds of calibration.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

import spectrim
from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.leverage import leverage_sample
from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.models.targets import Target
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe, Recipe
from spectrim.planning import make_plan
from spectrim.planning.predicted import predicted_curve
from spectrim.statistics import Calibration

BATCH = 1024
INPUTS, GRADIENTS = ("input_covariance",), ("gradient_covariance",)
RowsOf = Callable[["Trial"], Calibration]


@dataclass(frozen=True)
class Subject:
    """A model with the targets and the recipe that all rows share."""

    model: PreTrainedModel
    targets: list[Target]
    recipe: Recipe

    def calibrated(self, blocks: TokenBlocks, names: tuple[str, ...]) -> Calibration:
        settings = CalibrationSettings(names, tokens_per_batch=BATCH)
        return calibrate(self.model, self.targets, blocks, settings)


@dataclass(frozen=True)
class Trial:
    """Candidates in random order; the first `count` are the random rows."""

    subject: Subject
    candidates: TokenBlocks
    count: int
    seed: int

    def first(self, count: int) -> TokenBlocks:
        return self.candidates.select(torch.arange(count))

    def sampled(self) -> TokenBlocks:
        model, seed = self.subject.model, self.seed
        return self.candidates.weighted(
            *leverage_sample(model, self.candidates, self.count, BATCH, seed)
        )

    def of(self, inputs: TokenBlocks, gradients: TokenBlocks) -> Calibration:
        """Return inputs and gradients of two texts, each per token."""
        if inputs is gradients:
            return self.subject.calibrated(inputs, INPUTS + GRADIENTS)
        whole = self.subject.calibrated(inputs, INPUTS)
        part = self.subject.calibrated(gradients, GRADIENTS)
        scale = whole.tokens / part.tokens
        states = {
            key: {entry: scale * tensor for entry, tensor in state.items()}
            for key, state in part.states[GRADIENTS[0]].items()
        }
        return replace(whole, states=whole.states | {GRADIENTS[0]: states})


def random_few(trial: Trial) -> Calibration:
    rows = trial.first(trial.count)
    return trial.of(rows, rows)


def random_many(trial: Trial) -> Calibration:
    return trial.of(trial.candidates, trial.candidates)


def random_mixed(trial: Trial) -> Calibration:
    return trial.of(trial.candidates, trial.first(trial.count))


def leverage_alone(trial: Trial) -> Calibration:
    rows = trial.sampled()
    return trial.of(rows, rows)


def leverage(trial: Trial) -> Calibration:
    return trial.of(trial.candidates, trial.sampled())


def main() -> None:
    given = _arguments()
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    recipe = Recipe(
        budget=given.budget,
        layer="lowrank",
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )
    subject = Subject(model, prepare(model, recipe).targets, recipe)
    pools = [_rows(text, tokenizer, given) for text in (given.common, given.rare)]
    held = [pool.select(torch.arange(given.reference)) for pool in pools]
    pools = [pool.select(torch.arange(given.reference, len(pool))) for pool in pools]
    judges = [subject.calibrated(blocks, INPUTS + GRADIENTS) for blocks in held]
    judges.append(judges[0].interpolate(judges[1], given.share))
    many = f"{given.factor} times as many"
    rows: dict[str, RowsOf] = {
        "random": random_few,
        f"random, inputs of {many}": random_mixed,
        "weighted rows by leverage alone": leverage_alone,
        "--sampling leverage": leverage,
        f"random, {many}": random_many,
    }
    results: dict[str, list[list[float]]] = {name: [] for name in rows}
    for seed in range(given.repeats):
        trial = Trial(subject, _mixture(pools, given, seed), given.sequences, seed)
        for name, run in rows.items():
            start = time.process_time()
            found = run(trial)
            seconds = time.process_time() - start
            results[name].append([*(_loss(subject, found, j) for j in judges), seconds])
        print(f"draw {seed + 1} of {given.repeats}", flush=True)
    _print(results)


def _loss(subject: Subject, calibration: Calibration, judge: Calibration) -> float:
    """Return the loss of the factors of one calibration in the metrics of another."""
    result = decompose(subject.model, calibration, subject.recipe)
    total = 0.0
    for name, layer in make_plan(result, subject.recipe.planning).layers.items():
        if layer.rank is not None:
            factors = replace(result.factors[name], solved=None)
            total += float(predicted_curve(factors, judge.layer(name))[layer.rank])
    return total


def _mixture(pools: list[TokenBlocks], given: argparse.Namespace, seed: int) -> TokenBlocks:
    """Return candidates of which each is of the rare text with probability `share`."""
    generator = torch.Generator().manual_seed(seed)
    count = given.factor * given.sequences
    rare = int((torch.rand(count, generator=generator) < given.share).sum())
    parts = [
        pool.ids[torch.randperm(len(pool), generator=generator)[:number]]
        for pool, number in zip(pools, (count - rare, rare), strict=True)
    ]
    ids = torch.cat(parts)[torch.randperm(count, generator=generator)]
    return TokenBlocks(ids, None, f"mixture {seed}", "mixture", count)


def _rows(text: str, tokenizer: object, given: argparse.Namespace) -> TokenBlocks:
    blocks = token_blocks(text, tokenizer, BlockSettings(None, given.length, seed=0))
    wanted = given.reference + given.factor * given.sequences
    return blocks.select(torch.arange(min(len(blocks), 2 * wanted)))


def _print(results: dict[str, list[list[float]]]) -> None:
    print("| rows | common text | rare text | mixture | seconds |")
    print("|---|---|---|---|---|")
    for name, rows in results.items():
        values = torch.tensor(rows)
        means, errors = values.mean(0), values.std(0) / len(values) ** 0.5
        shown = [f"{m:.4f} ± {e:.4f}" for m, e in zip(means[:3], errors[:3], strict=True)]
        print(f"| {name} | {' | '.join(shown)} | {means[3]:.1f} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--common", required=True, help="text of most rows")
    parser.add_argument("--rare", required=True, help="text of a few rows")
    parser.add_argument("--share", type=float, default=0.05, help="of rows of the rare text")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--reference", type=int, default=400, help="rows of each judge")
    parser.add_argument("--repeats", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
