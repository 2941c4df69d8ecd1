"""Does the importance of a basis tell what removing it costs? Rank correlations, and the price.

    python benchmarks/basis_importance.py MODEL --task arithmetic:train:64
    python benchmarks/basis_importance.py MODEL --text FILE --sequences 32 --length 256

For bases drawn over all layers, the change of the loss when one is removed alone is measured on
the scoring rows themselves; each estimator's Spearman correlation with it is printed, with its
gradient passes and seconds. Markdown on standard output.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

import spectrim
from spectrim.data import BlockSettings, token_blocks
from spectrim.data.tasks import TaskRows
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.prune_for_task import spectral_copy
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe, TaskRecipe
from spectrim.pipeline.tasks import load_task_rows, sample_rows
from spectrim.pruning import IMPORTANCE, Objective, SpectralLinear

ESTIMATORS: list[tuple[str, str, dict[str, Any]]] = [
    ("magnitude (Basel)", "magnitude", {}),
    ("first order", "first_order", {}),
    ("gradient + Kronecker curvature (ours)", "kronecker", {}),
    ("gradient + token Fisher (ours)", "fisher", {}),
    *[
        (f"the same, {n} labels drawn at T = 1", "fisher", {"temperature": 1.0, "draws": n})
        for n in (1, 4)
    ],
    *[
        (f"token Fisher, size from probes on {m} rows (ours)", "scaled_fisher", {"rows": m})
        for m in (8, 16, 32)
    ],
    *[
        (f"BSI, {k} probes on a row each", "hutchinson", {"probes": k, "rows_per_probe": 1})
        for k in (32, 64, 128)
    ],
    *[(f"BSI, K = {k}", "hutchinson", {"probes": k}) for k in (1, 2, 4, 8, 16, 32, 64)],
    *[
        (
            f"BSI, K = {k}, Kronecker control",
            "hutchinson",
            {"probes": k, "control": "kronecker"},
        )
        for k in (4, 16)
    ],
]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's; ties are as good as absent."""
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])


def rows_for(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> TaskRows:
    if arguments.task:
        rows = load_task_rows(
            model, tokenizer, TaskRecipe(data=arguments.task, labels=arguments.labels)
        )
        return sample_rows(rows, arguments.sequences, 0)
    settings = BlockSettings(sequences=arguments.sequences, length=arguments.length, seed=0)
    blocks = token_blocks(arguments.text, tokenizer, settings)
    mask = torch.ones_like(blocks.ids, dtype=torch.bool)
    scored = mask.clone()
    scored[:, 0] = False
    return TaskRows(blocks.ids, mask, scored, blocks.fingerprint, blocks.source)


def changes(
    model: Any,
    layers: dict[str, SpectralLinear],
    chosen: list[tuple[str, int]],
    objective: Objective,
    coordinate: float = 0.0,
) -> Tensor:
    """Measured change of the loss when each of the chosen bases alone gets this coordinate."""
    base, found = objective.value(model), []
    for name, number in chosen:
        value = layers[name].coordinates.value
        with torch.no_grad():
            value[number] = coordinate
            found.append(objective.value(model) - base)
            value[number] = 1.0
    return torch.tensor(found, dtype=torch.float64)


def second_order(
    model: Any,
    layers: dict[str, SpectralLinear],
    chosen: list[tuple[str, int]],
    objective: Objective,
    step: float = 0.2,
) -> Tensor:
    """-g + h / 2 from central differences: what the best second-order estimator would say."""
    up, down = (changes(model, layers, chosen, objective, 1 + sign * step) for sign in (1, -1))
    return -(up - down) / (2 * step) + 0.5 * (up + down) / step**2


def drawn(layers: dict[str, SpectralLinear], count: int) -> list[tuple[str, int]]:
    every = [(name, i) for name, layer in layers.items() for i in range(layer.bases)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    return [every[i] for i in order[:count].tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task")
    parser.add_argument("--text")
    parser.add_argument("--labels", default="answer", choices=("answer", "all"))
    parser.add_argument("--method", default="svd")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--bases", type=int, default=200)
    parser.add_argument("--most-probes", type=int, default=64)
    arguments = parser.parse_args()

    model, tokenizer = spectrim.load(arguments.model, dtype=torch.float32)
    task = TaskRecipe(data=arguments.task) if arguments.task else None
    calibration = CalibrationRecipe(data=arguments.text or "python", length=arguments.length)
    recipe = Recipe(method=arguments.method, task=task, calibration=calibration)
    prepare(model, recipe)
    spectral, layers = spectral_copy(model, tokenizer, recipe)
    objective = Objective(rows_for(model, tokenizer, arguments), 16)
    chosen = drawn(layers, arguments.bases)
    measured = changes(spectral, layers, chosen, objective)
    total = sum(layer.bases for layer in layers.values())
    scored = int(objective.rows.scored.sum())
    print(f"{arguments.model}, {arguments.method} bases: {len(chosen)} of {total} bases, "
          f"{scored} scored tokens\n")  # fmt: skip
    print("| estimator | rank correlation | gradient passes | seconds |")
    print("|---|---:|---:|---:|")
    exact = second_order(spectral, layers, chosen, objective)
    print(f"| exact second order | {rank_correlation(exact, measured):.3f} | - | - |")
    for label, name, options in ESTIMATORS:
        if options.get("probes", 0) > arguments.most_probes and "rows_per_probe" not in options:
            continue
        start = time.monotonic()
        found = IMPORTANCE.get(name).estimate(
            spectral, layers, objective, IMPORTANCE.options(name, options)
        )
        seconds = time.monotonic() - start
        scores = torch.stack([found.scores[layer][number] for layer, number in chosen])
        print(
            f"| {label} | {rank_correlation(scores, measured):.3f} | {found.passes:g} | "
            f"{seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
