"""WeLore's claim: of a compressed model, tuning the low-rank layers alone is as good as all.

    python benchmarks/selective_tuning.py MODEL --data TRAIN --eval VALID

MODEL is cut by `svd/welore/lowrank` to --budget, so that some layers stay dense, and tuned on
TRAIN by next tokens: everything (`all`), the factored layers (`low_rank`), the others
(`dense`), or some singular vectors of the factored ones (`sst`); each at the learning rates
--rates. Prints Markdown with the best, and the memory that a tuning needed beyond the models.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectrim.checkpoint import load
from spectrim.data import BlockSettings, token_blocks
from spectrim.models.replace import factored_layers
from spectrim.pipeline.compress import compress
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.refinement.welore import chosen
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.runtime.memory import peak_bytes, resident_bytes, trim_memory
from spectrim.training.balanced_factors import balanced_parameters
from spectrim.training.losses import next_token_loss, task_rows

ROWS = [("all", "welore", {"part": "all"}), ("low_rank", "welore", {"part": "low_rank"})]
ROWS += [("dense", "welore", {"part": "dense"}), ("sst", "sst", {"vectors": 8, "interval": 25})]


def trained_parameters(model: nn.Module, name: str, options: dict[str, Any]) -> int:
    """Return how many numbers AdamW steps, each with 8 bytes of state."""
    with balanced_parameters(model) as inside:
        if name == "welore":
            return sum(p.numel() for p in chosen(model, inside, options["part"]).values())
        small = sum(p.numel() for p in inside.values() if p.ndim < 2)
    shapes = [(sum(layer.dense()[0].shape), layer.rank) for _, layer in factored_layers(model)]
    return small + sum(r + min(r, options["vectors"]) * sides for sides, r in shapes)


def reset_peak() -> int:
    """Begin to measure the peak anew (Linux) and return the bytes that are resident now."""
    trim_memory()
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rates", type=float, nargs="+", default=(3e-4, 1e-3, 3e-3))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    given = parser.parse_args(arguments)
    model, tokenizer = load(given.model, dtype=torch.float32)
    calibration = CalibrationRecipe(data=given.data, sequences=64, length=given.length)
    recipe = Recipe(
        budget=given.budget,
        method="svd",
        allocation="welore",
        layer="lowrank",
        calibration=calibration,
    )
    recipe = replace(recipe, probe=replace(recipe.probe, per_layer=False, joint=False))
    context = RunContext(Cache(None))
    smaller = compress(model, tokenizer, recipe, context=context).model
    settings = BlockSettings(given.steps * given.batch_size, given.length)
    blocks = token_blocks(given.data, tokenizer, settings, None)
    valid = task_rows(
        token_blocks(given.eval, tokenizer, BlockSettings(128, given.length), None)
    )

    @torch.no_grad()
    def loss(of) -> float:
        parts = torch.arange(len(valid)).split(16)
        return sum(float(next_token_loss(of, valid, "float32", p)) for p in parts) / len(parts)

    print(f"{Path(given.model).name}: {loss(model):.3f}, at {given.budget} {loss(smaller):.3f}")
    print(
        "| trained | loss (rate) | others | trained parameters | state, bytes | ms per step"
        " | peak, MiB |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for title, name, options in ROWS:
        module, found = REFINEMENTS.get(name), {}
        peak = 0.0
        for rate in given.rates:
            tuned = copy.deepcopy(smaller)
            given_options = options | {"learning_rate": rate, "steps": given.steps}
            given_options |= {"batch_size": given.batch_size}
            inputs = TrainingInputs(model, tuned, blocks)
            before = reset_peak()
            began = time.perf_counter()
            module.refine(inputs, REFINEMENTS.options(name, given_options), context)
            pace = 1000 * (time.perf_counter() - began) / given.steps
            peak = max(peak, (peak_bytes() - before) / 2**20)
            found[rate] = loss(tuned), pace
        best = min(found, key=lambda rate: found[rate][0])
        others = ", ".join(f"{v:.3f} ({r:g})" for r, (v, _) in found.items() if r != best)
        count = trained_parameters(smaller, name, options)
        pace = min(seconds for _, seconds in found.values())
        cells = title, f"{found[best][0]:.3f} ({best:g})", others, f"{count:,}"
        print(f"| {' | '.join(cells)} | {8 * count:,} | {pace:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
