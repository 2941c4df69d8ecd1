"""Random and leverage-sampled calibration rows on mixed text: the excess of the predicted loss.

    python benchmarks/sampling_table.py MODEL --common TEXT --rare TEXT [--share 0.05]

Calibrates on `--sequences` rows at random, on `--factor` times as many, and by
`--sampling leverage` out of these; `--repeats` draws of rows of which `--share` are of the rare
text. Each result is cut to `--budget` and judged in the metrics of a long calibration on other
rows of each text: half the weighted squared error, nats per token, which is what the quadratic
model of the loss says of the factors. `--gradient-damping` is tried beside the default one, and
two other scores of rows beside that of `--sampling leverage`.
Columns: mean and standard error on the common text, on the rare text, and on the mixture; the
measured increase of the loss on `--measured` rows of each text, mixed; seconds of calibration.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

import spectrim
from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.leverage import leverage_sample, systematic_sample
from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.evaluation import evaluate_model
from spectrim.linalg.leverage import keep_probabilities
from spectrim.models.targets import Target
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe, Recipe
from spectrim.pipeline.replace import replace_layers
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

    def sampled_by(self, scores: Tensor) -> TokenBlocks:
        """Return rows drawn with probabilities in proportion to scores (N,), with weights."""
        probabilities = keep_probabilities(scores, self.count)
        generator = torch.Generator().manual_seed(self.seed)
        rows = systematic_sample(probabilities, generator)
        weights = 1 / probabilities[rows]
        return self.candidates.weighted(rows, weights * len(self.candidates) / weights.sum())

    @torch.no_grad()
    def logit_energies(self) -> Tensor:
        """Return `sum_t ||softmax(z_t) - onehot(y_t)||^2` of each candidate (N,)."""
        found = []
        for ids in self.candidates.ids.split(BATCH // self.candidates.length):
            p = self.subject.model(input_ids=ids).logits[:, :-1].float().softmax(-1)
            chosen = p.gather(2, ids[:, 1:, None])[..., 0]
            found.append((p.square().sum(-1) + 1 - 2 * chosen).sum(1).double())
        return torch.cat(found)

    def gradient_energies(self) -> Tensor:
        """Return the share of each candidate (N,) in the gradients' energy, mean over layers.

        A backward pass over every candidate: what no choice before it can know.
        """
        rows = []
        for number in range(len(self.candidates)):
            one = self.candidates.select(torch.tensor([number]))
            states = self.subject.calibrated(one, GRADIENTS).states[GRADIENTS[0]]
            rows.append(torch.stack([state["sum"].trace() for state in states.values()]))
        energies = torch.stack(rows)
        return (energies / energies.sum(0)).mean(1)

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


def by_logits(trial: Trial) -> Calibration:
    return trial.of(trial.candidates, trial.sampled_by(trial.logit_energies()))


def by_gradients(trial: Trial) -> Calibration:
    return trial.of(trial.candidates, trial.sampled_by(trial.gradient_energies()))


def main() -> None:
    given = _arguments()
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    recipe = Recipe(
        budget=given.budget,
        layer="lowrank",
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )
    targets = [t for t in prepare(model, recipe).targets if re.search(given.layers, t.name)]
    subject = Subject(model, targets, recipe)
    pools = [_rows(text, tokenizer, given) for text in (given.common, given.rare)]
    held = [pool.select(torch.arange(given.reference)) for pool in pools]
    pools = [pool.select(torch.arange(given.reference, len(pool))) for pool in pools]
    judges = [subject.calibrated(blocks, INPUTS + GRADIENTS) for blocks in held]
    judges.append(judges[0].interpolate(judges[1], given.share))
    many, damped = f"{given.factor} times as many", f"damping {given.gradient_damping:g}"
    rows: dict[str, RowsOf] = {
        "random": random_few,
        f"random, inputs of {many}": random_mixed,
        "weighted rows by leverage alone": leverage_alone,
        "--sampling leverage": leverage,
        "by the energy of gradients at the logits": by_logits,
        "by the energy of all gradients (oracle)": by_gradients,
        f"random, {many}": random_many,
    }
    rows = {name: run for name, run in rows.items() if re.search(given.only, name)}
    dampings = {"": None, f", {damped}": given.gradient_damping}
    texts = [blocks.select(torch.arange(given.measured)) for blocks in held]
    judge = Judge(subject, judges, texts, given.share)
    results: dict[str, list[list[float]]] = defaultdict(list)
    for seed in range(given.first, given.first + given.repeats):
        trial = Trial(subject, _mixture(pools, given, seed), given.sequences, seed)
        for name, run in rows.items():
            start = time.process_time()
            found = run(trial)
            seconds = time.process_time() - start
            for ending, damping in dampings.items():
                results[name + ending].append([*judge.losses(found, damping), seconds])
        print(f"draw {seed}", flush=True)
        _print(results)


@dataclass(frozen=True)
class Judge:
    """Metrics of long calibrations, and rows of the two texts to measure the loss on."""

    subject: Subject
    metrics: list[Calibration]
    texts: list[TokenBlocks]
    share: float

    def losses(self, calibration: Calibration, damping: float | None) -> list[float]:
        """Return the loss of the factors in each metric, and the measured increase."""
        options = {} if damping is None else {"gradient_damping": damping}
        recipe = replace(self.subject.recipe, method_options=options)
        model = self.subject.model
        result = decompose(model, calibration, recipe)
        plan = make_plan(result, recipe.planning)
        totals = [0.0 for _ in self.metrics]
        for name, layer in plan.layers.items():
            if layer.rank is not None:
                factors = replace(result.factors[name], solved=None)
                for number, metric in enumerate(self.metrics):
                    curve = predicted_curve(factors, metric.layer(name))
                    totals[number] += float(curve[layer.rank])
        cut = replace_layers(model, result, plan)
        return [*totals, self._measured(cut) - self._measured(model)]

    def _measured(self, model: PreTrainedModel) -> float:
        common, rare = (
            math.log(evaluate_model(model, text, ("perplexity",))["perplexity"])
            for text in self.texts
        )
        return (1 - self.share) * common + self.share * rare


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
    print("| rows | common text | rare text | mixture | measured, mixture | seconds |")
    print("|---|---|---|---|---|---|")
    for name, rows in results.items():
        values = torch.tensor(rows)
        means, errors = values.mean(0), values.std(0) / len(values) ** 0.5
        shown = [f"{m:.4f} ± {e:.4f}" for m, e in zip(means[:4], errors[:4], strict=True)]
        print(f"| {name} | {' | '.join(shown)} | {means[4]:.1f} |", flush=True)


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
    parser.add_argument("--measured", type=int, default=100, help="rows of each text")
    parser.add_argument("--gradient-damping", type=float, default=0.1)
    parser.add_argument("--layers", default="", help="pattern of names; all by default")
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--only", default="", help="pattern of the ways to choose rows")
    parser.add_argument("--repeats", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
