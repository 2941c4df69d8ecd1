"""Merge the calibrations of two texts by each mean of covariances: measured loss on both.

    python benchmarks/covariance_means.py MODEL --texts A B --evals A B [--budgets 0.8 0.6]

Covariances of inputs and gradients of both texts, each `--rows` rows, are merged by
`spectrim.statistics.merge_calibrations`; the model is cut to each budget (loss-optimal ranks,
plain factors, no probing) and run over held-out text of both kinds. Columns: loss increase in
nats per token, mean and standard error of `--repeats` draws of rows. `--noise` adds a third
calibration, of random tokens, to every merge. Below: the drift of the input covariances, mean
over layers, from the first draw of A to the second and to B.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

import spectrim
from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.evaluation import evaluate_model
from spectrim.pipeline.calibrate import prepare
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe, Recipe
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import make_plan
from spectrim.statistics import Calibration, covariance_drift, merge_calibrations

STATISTICS = ("input_covariance", "gradient_covariance")
MEANS = ("arithmetic", "bures_wasserstein", "log_euclidean")


def main() -> None:
    given = _arguments()
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    recipe = Recipe(
        layer="lowrank",
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )
    targets = prepare(model, recipe).targets
    settings = CalibrationSettings(STATISTICS, tokens_per_batch=1024)
    held = [
        token_blocks(text, tokenizer, BlockSettings(given.eval_rows, given.length, None))
        for text in given.evals
    ]
    dense = [_loss(model, blocks) for blocks in held]
    results: dict[str, list[list[float]]] = {}
    firsts = []
    pools = [
        token_blocks(text, tokenizer, BlockSettings(None, given.length, 0))
        for text in given.texts
    ]
    for seed in range(given.repeats):
        draws = [_drawn(pool, given.rows, seed) for pool in pools]
        if given.noise:
            draws.append(_noise(draws[0], model.config.vocab_size, seed))
        parts = [calibrate(model, targets, blocks, settings) for blocks in draws]
        firsts.append(parts)
        for name, merged in _merged(parts):
            found = []
            for budget in given.budgets:
                own = recipe.with_changes(budget=budget)
                result = decompose(model, merged, own)
                cut = replace_layers(model, result, make_plan(result, own.planning))
                losses = [_loss(cut, blocks) for blocks in held]
                found += [after - before for after, before in zip(losses, dense, strict=True)]
                found.append(sum(found[-2:]) / 2)
            results.setdefault(name, []).append(found)
            print(f"draw {seed + 1}: {name}: {found}", flush=True)
    _print(results, given.budgets)
    if given.repeats > 1:
        for what, other in (("A again", firsts[1][0]), ("B", firsts[0][1])):
            drift = covariance_drift(firsts[0][0], other)
            print(f"drift from A to {what}: {sum(drift.values()) / len(drift):.3f}")


def _merged(parts: list[Calibration]) -> Iterator[tuple[str, Calibration]]:
    if len(parts) == 2:
        yield "A alone", parts[0]
        yield "B alone", parts[1]
    for mean in MEANS:
        start = time.process_time()
        merged = merge_calibrations(parts, mean=mean)
        print(f"{mean}: {time.process_time() - start:.1f} s", flush=True)
        yield mean, merged


def _drawn(pool: TokenBlocks, count: int, seed: int) -> TokenBlocks:
    generator = torch.Generator().manual_seed(seed)
    return pool.select(torch.randperm(len(pool), generator=generator)[:count])


def _noise(like: TokenBlocks, vocabulary: int, seed: int) -> TokenBlocks:
    """Return rows of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, like.ids.shape, generator=generator)
    return TokenBlocks(ids, None, f"noise {seed}", "noise", len(ids))


def _loss(model: PreTrainedModel, blocks: TokenBlocks) -> float:
    return math.log(evaluate_model(model, blocks, ("perplexity",))["perplexity"])


def _print(results: dict[str, list[list[float]]], budgets: list[float]) -> None:
    heads = [f"{text} at {b:g}" for b in budgets for text in ("A", "B", "mean")]
    print(f"| covariances | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    for name, rows in results.items():
        values = torch.tensor(rows)
        errors = values.std(0) / len(values) ** 0.5
        pairs = zip(values.mean(0), errors, strict=True)
        print(f"| {name} | {' | '.join(f'{m:.3f} ± {e:.3f}' for m, e in pairs)} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--texts", nargs=2, required=True, metavar=("A", "B"))
    parser.add_argument("--evals", nargs=2, required=True, metavar=("A", "B"))
    parser.add_argument("--rows", type=int, default=128, help="of each text")
    parser.add_argument("--eval-rows", type=int, default=64, help="of each text")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--noise", action="store_true", help="merge random tokens as well")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.8, 0.6])
    parser.add_argument("--repeats", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    main()
