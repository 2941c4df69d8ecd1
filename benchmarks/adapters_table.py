"""Adapters at equal trainable numbers, each at the best of three learning rates.

    python benchmarks/adapters_table.py text MODEL --train new.jsonl --field question \
        --valid new_test.jsonl --old old.txt --out OUT
    python benchmarks/adapters_table.py task arithmetic --out OUT

`text` adapts a dense model to another text; its loss on that and on the old text, which it
forgets, is on tokens that it has not seen. `task` takes a model that was compressed to
`--budget` back to its task, or a dense one to it (`--budget 1`); accuracy is exact match of
greedy answers. The rate is chosen on
other held-out rows than those that are reported, with the first seed; further seeds take that
rate. Rows are kept in OUT.jsonl, so a stopped run goes on; OUT.md is the table.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import spectrim
from spectrim.adapters import config_class, with_statistics
from spectrim.adapters.lora import AdapterOptions
from spectrim.adapters.targets import adapter_targets
from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.models.linear import get_shape
from spectrim.pipeline.evaluate import evaluate_task
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.recipe import CalibrationRecipe, Recipe, TaskRecipe
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.runtime.files import write_text
from spectrim.training.loop import Stage, Trainer
from spectrim.training.losses import next_token_loss, task_rows

EVALUATED = 32
"""Rows of a batch without gradients."""


@dataclass(frozen=True)
class Method:
    """A row: the adapter, its options, and the first of three rates, each three times the last.

    matched: the option that is set so that as many numbers train as in LoRA.
    """

    adapter: str
    rate: float
    options: dict[str, Any]
    matched: str = "r"


METHODS = {
    "full": Method("full", 3e-5, {}, ""),
    "LoRA": Method("lora", 1e-3, {}),
    "DoRA": Method("dora", 1e-3, {}),
    "PiSSA": Method("pissa", 3e-4, {}),
    "MiLoRA": Method("milora", 1e-3, {}),
    "OBD, principal": Method("obd", 3e-4, {"part": "principal"}),
    "OBD, residual": Method("obd", 1e-3, {"part": "residual"}),
    "SoKA": Method("soka", 3e-4, {}),
    "SALT": Method("salt", 1e-3, {}),
    "Effort, projected": Method("effort", 3e-3, {"project": True}),
    "Effort, free": Method("effort", 3e-3, {"project": False}),
    "SVFT, band": Method("svfit", 1e-3, {"core": "band"}, "band"),
    "SVFit": Method("svfit", 1e-2, {}, ""),
}


@dataclass(frozen=True)
class Case:
    """A model to adapt and the tokens for it; `chosen` selects the rate, `reported` is told."""

    model: Any
    tokenizer: Any
    train: TokenBlocks
    chosen: TokenBlocks
    reported: TokenBlocks
    old: TokenBlocks | None = None
    task: str | None = None


def text_case(given: argparse.Namespace) -> Case:
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)

    def read(place: str, rows: int, field: str | None) -> TokenBlocks:
        settings = BlockSettings(rows, given.length, 0)
        return token_blocks(place, tokenizer, settings, field)

    held = read(given.valid, 256, given.field)
    train = read(given.train, given.steps * given.rows, given.field)
    old = read(given.old, 128, None)
    return Case(model, tokenizer, train, *_halves(held), old=old)


def task_case(given: argparse.Namespace) -> Case:
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    recipe = Recipe(
        budget=given.budget,
        layer="lowrank",
        calibration=CalibrationRecipe(sequences=256),
        task=TaskRecipe(data=given.task),
        refinement=(),
    )
    if given.budget < 1:
        context = RunContext(Cache(given.out.with_suffix(".cache")))
        model = spectrim.compress(model, tokenizer, recipe, context).model

    def read(spec: str) -> TokenBlocks:
        wanted = recipe.with_changes(
            task=TaskRecipe(data=spec), calibration=CalibrationRecipe(sequences=10**9)
        )
        return calibration_blocks(model, tokenizer, wanted)

    held = _halves(read("arithmetic:test:256"))
    return Case(model, tokenizer, read(given.task), *held, task=given.test)


def _halves(blocks: TokenBlocks) -> tuple[TokenBlocks, TokenBlocks]:
    rest = {
        name: getattr(blocks, name)[1:]
        for name in ("ids", "mask", "scored")
        if getattr(blocks, name) is not None
    }
    return blocks.every(2), replace(blocks, document_of_row=None, **rest).every(2)


def matched(model: nn.Module, method: Method, rank: int) -> dict[str, Any]:
    """Return the options with which a method trains about as many numbers as LoRA at `rank`."""
    if not method.matched:
        return method.options
    shapes = [get_shape(model.get_submodule(name)) for name in adapter_targets(model)]
    target = sum(min(rank, *shape) * sum(shape) for shape in shapes)
    size = rank
    if method.adapter in ("salt", "svfit"):
        sizes = range(1, 64)
        size = min(sizes, key=lambda s: abs(_count(method.adapter, shapes, s) - target))
    return method.options | {method.matched: size}


def _count(adapter: str, shapes: list[tuple[int, int]], size: int) -> int:
    total = 0
    for full in map(min, shapes):
        if adapter == "salt":
            scaled = math.ceil(0.25 * full)
            total += 2 * scaled + 2 * size * (full - scaled)
        else:
            total += full + 2 * sum(full - d for d in range(1, min(size, full - 1) + 1))
    return total


def adapted(case: Case, method: Method, rank: int, seed: int) -> Any:
    """Return the model with the method on it, and only what it trains with a gradient."""
    torch.manual_seed(seed)
    model, names = case.model, adapter_targets(case.model)
    if method.adapter == "full":
        model.requires_grad_(False)
        for name in names:
            model.get_submodule(name).requires_grad_(True)
        return model
    if method.adapter in ("lora", "dora"):
        config: Any = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=names, use_dora=method.adapter == "dora"
        )
    else:
        config = config_class(method.adapter)(**matched(model, method, rank))
        config = with_statistics(config, model, case.train.every(4))
    return get_peft_model(model, config)


def run(
    case: Case, name: str, rate: float, seed: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Train one adapter from the model as it was, and measure it."""
    method = METHODS[name]
    before = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    started = time.process_time()
    model = adapted(case, method, given.rank, seed).eval()
    setup = time.process_time() - started
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rows = task_rows(case.train)
    stage = Stage(
        "adapters", trained, lambda at: next_token_loss(model, rows, "float32", at), len(rows)
    )
    options = AdapterOptions(
        steps=given.steps, batch_size=given.rows, learning_rate=rate, seed=seed
    )
    trainer = Trainer(stage, options.schedule(len(rows)), {})
    started = time.process_time()
    losses = [trainer.step(step) for step in range(given.steps)]
    seconds = (time.process_time() - started) / given.steps
    found = {
        "method": name,
        "rate": rate,
        "seed": seed,
        "trained": sum(p.numel() for p in trained.values()),
        "bytes": _stored_bytes(model, method),
        "setup_seconds": setup,
        "step_seconds": seconds,
        "training_loss": mean(losses[-max(1, len(losses) // 10) :]),
        "chosen_loss": loss_of(model, case.chosen),
        "loss": loss_of(model, case.reported),
    }
    if case.old is not None:
        found["old_loss"] = loss_of(model, case.old)
    if case.task is not None and given.accuracy:
        merged = model if method.adapter == "full" else model.merge_and_unload()
        found["accuracy"] = evaluate_task(merged, case.tokenizer, TaskRecipe(data=case.task))[
            "accuracy"
        ]
    elif method.adapter != "full":
        model.unload()
    case.model.load_state_dict(before)
    return found


def _stored_bytes(model: Any, method: Method) -> int:
    """Bytes of the adapter's file; of full training, of what it changed."""
    if method.adapter == "full":
        return sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, save_embedding_layers=False).values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def loss_of(model: Any, blocks: TokenBlocks) -> float:
    """Return the mean over batches of the loss of the scored tokens, nats per token."""
    rows = task_rows(blocks)
    parts = torch.arange(len(rows)).split(EVALUATED)
    return mean(float(next_token_loss(model, rows, "float32", part)) for part in parts)


def wanted(rows: list[dict[str, Any]], given: argparse.Namespace) -> Iterator[tuple]:
    """Yield what is still to be run: all rates with the first seed, the best with others."""
    first, *others = map(int, given.seeds.split(","))
    done = {(row["method"], row["rate"], row["seed"]) for row in rows}
    names = given.methods.split(";")
    for name in names:
        for step in range(3):
            if (name, rate := METHODS[name].rate * 3**step, first) not in done:
                yield name, rate, first
    for seed in others:
        for name in names:
            rate = best(rows, name, first)["rate"]
            if (name, rate, seed) not in done:
                yield name, rate, seed


def best(rows: list[dict[str, Any]], name: str, seed: int) -> dict[str, Any]:
    own = [row for row in rows if row["method"] == name and row["seed"] == seed]
    return min(own, key=lambda row: row["chosen_loss"])


def table(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    first = int(given.seeds.split(",")[0])
    figures = ["loss"] + [key for key in ("old_loss", "accuracy") if key in rows[-1]]
    head = ["method", "numbers trained", "file, kB", "rate", *figures, "s per step"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name in METHODS:
        if not any(row["method"] == name for row in rows):
            continue
        chosen = best(rows, name, first)
        own = [r for r in rows if r["method"] == name and r["rate"] == chosen["rate"]]
        cells = [f"{chosen['trained']:,}", f"{chosen['bytes'] / 1000:.0f}"]
        cells += [f"{chosen['rate']:.2g}"]
        cells += [_cell([row[figure] for row in own if figure in row]) for figure in figures]
        cells += [f"{mean(row['step_seconds'] for row in own):.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("text", "task"))
    parser.add_argument("model")
    parser.add_argument("--train", help="the new text")
    parser.add_argument("--valid", help="held-out new text")
    parser.add_argument("--old", help="a text that the model knows")
    parser.add_argument("--field", help="of the new text")
    parser.add_argument("--task", default="arithmetic:train:2000")
    parser.add_argument("--test", default="arithmetic:test:100")
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8, help="per step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--accuracy", action="store_true", help="measure it, of the task")
    parser.add_argument("--methods", default=";".join(METHODS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    kept = given.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    case = {"text": text_case, "task": task_case}[given.case](given)
    start = {"loss": loss_of(case.model, case.reported)}
    if case.old is not None:
        start["old_loss"] = loss_of(case.model, case.old)
    if case.task is not None:
        task = TaskRecipe(data=case.task)
        start["accuracy"] = evaluate_task(case.model, case.tokenizer, task)["accuracy"]
    print("before:", json.dumps(start), flush=True)
    for name, rate, seed in wanted(rows, given):
        rows.append(run(case, name, rate, seed, given))
        print(json.dumps(rows[-1]), flush=True)
        write_text(kept, "".join(json.dumps(row) + "\n" for row in rows))
        write_text(given.out.with_suffix(".md"), table(rows, given))
    print(table(rows, given))


if __name__ == "__main__":
    main()
