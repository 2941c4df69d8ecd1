"""Accuracy on a task against the compression of the layers, for every way to get there.

    python benchmarks/task_compression.py arithmetic --out OUT [--ratios 2,4,6,10,15]

Every method sees the same training examples for the same number of steps, in batches of the
same size, and stores plain factors: methods that cut at once fine-tune their factors for all
steps, methods that select bases tune coordinates while they prune and factors afterwards.
Accuracy is exact match of greedy answers to test problems. Finished rows are kept in OUT.jsonl,
so a stopped run goes on; OUT.md is the table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import spectrim
from spectrim.pipeline.evaluate import evaluate_task
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.prune_for_task import prune_for_task
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
    RefinementRecipe,
    TaskRecipe,
)
from spectrim.pipeline.refine import refine
from spectrim.pipeline.replace import replace_layers
from spectrim.pruning import PruningOptions
from spectrim.pruning.importance import GradientTerm
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.runtime.files import write_text

ROWS = 16
SHARE = 0.25
"""Of the steps of a selecting method that tune coordinates; the rest fine-tunes factors."""
SCORING = {"scoring_examples": 64, "prune_steps": 6}
PROBES: dict[str, Any] = {"probes": 16, "rows_per_probe": 16, "negative": "magnitude"}
ROW_PROBES = PROBES | {"probes": 256, "rows_per_probe": 1}
CALIBRATED: dict[str, Any] = {"rows": 64}
DRAWN: dict[str, Any] = {"temperature": 1.0}


@dataclass(frozen=True)
class Steps:
    """How many, of which the last fine-tune factors at this rate."""

    count: int
    rate: float

    def fine_tuning(self) -> tuple[RefinementRecipe, ...]:
        options = {
            "steps": self.count,
            "batch_size": ROWS,
            "learning_rate": self.rate,
        }
        return (RefinementRecipe("finetune", options),)


def at_once(method: str, allocation: str) -> Callable[[Steps], Recipe]:
    def recipe(steps: Steps) -> Recipe:
        return Recipe(method=method, allocation=allocation, refinement=steps.fine_tuning())

    return recipe


def selecting(method: str, **selection: Any) -> Callable[[Steps], Recipe]:
    def recipe(steps: Steps) -> Recipe:
        tuning = round(SHARE * steps.count)
        options = PruningOptions(steps=tuning, batch_size=ROWS, **SCORING, **selection)
        rest = Steps(steps.count - tuning, steps.rate)
        return Recipe(method=method, pruning=options, refinement=rest.fine_tuning())

    return recipe


def all_at_once(
    method: str, slope: GradientTerm = "none", **selection: Any
) -> Callable[[Steps], Recipe]:
    """Scored once, in the model as it was, cut at once; all steps fine-tune factors."""

    def recipe(steps: Steps) -> Recipe:
        options = PruningOptions(
            steps=0,
            prune_steps=1,
            scoring_examples=512,
            gradient_term=slope,
            batch_size=ROWS,
            **selection,
        )
        return Recipe(method=method, pruning=options, refinement=steps.fine_tuning())

    return recipe


METHODS: dict[str, Callable[[Steps], Recipe]] = {
    "SVD + fine-tuning": at_once("svd", "uniform"),
    "SVD-LLM + fine-tuning": at_once("svd_llm", "uniform"),
    "OBD + fine-tuning": at_once("obd", "loss_optimal"),
    "Basel": selecting("svd", importance="magnitude", rule="energy"),
    "BSI": selecting("svd", importance="hutchinson", importance_options=PROBES),
    "BSI, slopes with their sign": selecting(
        "svd", importance="hutchinson", importance_options=PROBES, gradient_term="signed"
    ),
    "BSI, probes on a row each": selecting(
        "svd", importance="hutchinson", importance_options=ROW_PROBES
    ),
    "Basel, cut at once": all_at_once("svd", importance="magnitude", rule="energy"),
    "BSI, cut at once": all_at_once(
        "svd",
        gradient_term="absolute",
        importance="hutchinson",
        importance_options=PROBES | {"rows_per_probe": 32},
    ),
    "ours": all_at_once("obd", importance="fisher"),
    "ours, scaled_fisher": all_at_once(
        "obd",
        importance="scaled_fisher",
        importance_options=CALIBRATED,
        gradient_term="absolute",
    ),
    "ours, scaled_fisher, SVD bases": all_at_once(
        "svd",
        importance="scaled_fisher",
        importance_options=CALIBRATED,
        gradient_term="absolute",
    ),
    "ours, Kronecker curvature": all_at_once("obd", importance="kronecker"),
    "ours, bases tuned in between": selecting(
        "obd", importance_options=DRAWN, trainable="factors", extra_rank=0
    ),
    "ours, coordinates tuned in between": selecting("obd", importance_options=DRAWN),
    "ours, coordinates, SVD bases": selecting("svd", importance_options=DRAWN),
}


def row(name: str, ratio: float, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One compressed and tuned model, judged on problems it has not seen."""
    model, tokenizer = spectrim.load(arguments.model, dtype=torch.float32)
    recipe = METHODS[name](Steps(arguments.steps, arguments.rate))
    selection = recipe.pruning and replace(recipe.pruning, seed=seed)
    refinement = tuple(
        replace(step, options=step.options | {"seed": seed}) for step in recipe.refinement
    )
    recipe = recipe.with_changes(
        layer="lowrank",
        budget=1 / ratio,
        calibration=CalibrationRecipe(sequences=256, seed=seed),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
        probe=ProbeRecipe(per_layer=False, joint=False),
        task=TaskRecipe(data=arguments.task),
        pruning=selection,
        refinement=refinement,
    )
    start = time.process_time()
    progress = RunContext(Cache(arguments.out.with_suffix(".cache")))
    if recipe.pruning is not None:
        special = prune_for_task(model, tokenizer, recipe, progress)
        smaller, kept = special.model, special.plan.kept
        events = [vars(event) for event in special.state.prune_steps]
    else:
        decomposition = factorize(model, tokenizer, recipe, progress)
        chosen = plan(decomposition, recipe)
        smaller, kept = replace_layers(model, decomposition, chosen), chosen.kept
        events = []
    smaller = refine(model, smaller, tokenizer, recipe, progress)
    seconds = time.process_time() - start
    figures = evaluate_task(smaller, tokenizer, TaskRecipe(data=arguments.test))
    return {
        "method": name,
        "ratio": ratio,
        "seed": seed,
        "kept": kept,
        "accuracy": figures["accuracy"],
        "loss": figures["task_loss"],
        "seconds": seconds,
        "steps": arguments.steps,
        "rate": arguments.rate,
        "passes": sum(event["passes"] for event in events),
        "pruned_loss": events[-1]["loss"] if events else None,
    }


def tables(rows: list[dict[str, Any]]) -> str:
    """Accuracy in percent, and loss in nats per token of the answers."""
    return f"{_table(rows, 'accuracy', 100)}\n{_table(rows, 'loss', 1)}"


def _table(rows: list[dict[str, Any]], figure: str, scale: float) -> str:
    ratios = sorted({row["ratio"] for row in rows})
    lines = [
        f"| {figure} | " + " | ".join(f"{ratio:g}x" for ratio in ratios) + " | seconds |",
        "|---|" + "---:|" * (len(ratios) + 1),
    ]
    for name in METHODS:
        own = [row for row in rows if row["method"] == name]
        if own:
            cells = [
                _cell(
                    [scale * r[figure] for r in own if r["ratio"] == q], 1 if scale > 1 else 3
                )
                for q in ratios
            ]
            seconds = mean(row["seconds"] for row in own)
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task", default="arithmetic:train:6400")
    parser.add_argument("--test", default="arithmetic:test:200")
    parser.add_argument("--ratios", default="2,4,6,10,15")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=";".join(METHODS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=3e-3, help="of the factors")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    kept_rows = arguments.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in kept_rows.read_text().splitlines()] if (
        kept_rows.exists()
    ) else []  # fmt: skip
    done = {(row["method"], row["ratio"], row["seed"]) for row in rows}
    for seed in map(int, arguments.seeds.split(",")):
        for ratio in map(float, arguments.ratios.split(",")):
            for name in arguments.methods.split(";"):
                if (name, ratio, seed) in done:
                    continue
                rows.append(row(name, ratio, seed, arguments))
                print(json.dumps(rows[-1]), flush=True)
                write_text(kept_rows, "".join(json.dumps(r) + "\n" for r in rows))
                write_text(arguments.out.with_suffix(".md"), tables(rows))
    print(tables(rows))


if __name__ == "__main__":
    main()
