"""Optimizers, and ways to store weights, on a small Llama trained from scratch.

    python benchmarks/optimizers_table.py CONFIG --data TRAIN --eval VALID [--part methods]

CONFIG is a directory with a Llama's config and tokenizer, of which --layers blocks are taken.
Every row is trained at three learning rates of its matrices, about a factor of three apart, or
at --rates; embeddings, output layer and norms have one rate, of AdamW, in all rows.
The best rate by the loss on VALID is then trained with --seeds in all. Every training sequence
is read once, so that the mean training loss over 25 steps is a loss on new text: "tokens to" is
where it first falls below the last one of AdamW (or of the dense weights). Prints Markdown.
Runs are kept in --out, so a stopped table goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from spectrim.data import BlockSettings, token_blocks
from spectrim.pipeline.train import train
from spectrim.pipeline.train_settings import TrainSettings
from spectrim.training.losses import next_token_loss, task_rows

WINDOW = 25
SMALL, MIDDLE = (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)
ORTHOGONAL = (3e-3, 7e-3, 2e-2)


@dataclass(frozen=True)
class Row:
    title: str
    rates: tuple[float, ...]
    optimizer: str = "adamw"
    options: tuple[str, ...] = ()
    method: str = "full"
    method_options: tuple[str, ...] = ()


OPTIMIZERS = [
    Row("adamw", SMALL),
    Row("muon", ORTHOGONAL, "muon"),
    Row("hybrid_auon", ORTHOGONAL, "hybrid_auon"),
    Row("trion", (7e-3, 2e-2, 5e-2), "trion"),
    Row("soap", SMALL, "soap"),
    Row("galore", SMALL, "galore", ("rank=16", "update_gap=50", "scale=1.0")),
    Row("dct_adamw", MIDDLE, "dct_adamw"),
    Row("dct_adamw, basis identity", MIDDLE, "dct_adamw", ("basis=identity",)),
    Row("dct_adamw, basis random", MIDDLE, "dct_adamw", ("basis=random",)),
    Row("dct_adamw, no error feedback", SMALL, "dct_adamw", ("error_feedback=false",)),
    Row("auon", (0.3, 1.0, 4.0), "auon"),
]
METHODS = [
    Row("full", SMALL),
    Row("lowrank", SMALL, method="lowrank"),
    Row("sltrain", SMALL, method="sltrain", method_options=("rank_fraction=0.22",)),
    Row("sst", MIDDLE, method="sst"),
    Row("maestro", SMALL, method="maestro"),
]
"""sltrain has the parameters of lowrank, its 3% of free entries included."""


@dataclass(frozen=True)
class Trained:
    loss: float
    losses: list[float]
    parameters: int
    state_bytes: int
    seconds: float

    @property
    def smoothed(self) -> list[float]:
        ends = range(WINDOW, len(self.losses) + 1)
        return [sum(self.losses[end - WINDOW : end]) / WINDOW for end in ends]

    def steps_to(self, loss: float) -> int | None:
        found = (i for i, value in enumerate(self.smoothed) if value <= loss)
        first = next(found, None)
        return None if first is None else first + WINDOW


class Bench:
    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.tokenizer = AutoTokenizer.from_pretrained(given.config)
        settings = BlockSettings(256, given.length)
        self.valid = task_rows(token_blocks(given.eval, self.tokenizer, settings, None))

    def run(self, row: Row, rate: float, seed: int) -> Trained:
        """Return a run, from the file of `--out` where it stands there."""
        key = {"row": row.title, "rate": rate, "seed": seed, "steps": self.given.steps}
        place: Path | None = self.given.out
        if place is not None and place.exists():
            for entry in map(json.loads, place.read_text().splitlines()):
                if entry["key"] == key:
                    return Trained(**entry["trained"])
        trained = self.train(row, rate, seed)
        if place is not None:
            with place.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "trained": asdict(trained)}) + "\n")
        return trained

    def train(self, row: Row, rate: float, seed: int) -> Trained:
        config = AutoConfig.from_pretrained(self.given.config)
        config.num_hidden_layers = self.given.layers
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        settings = TrainSettings(
            data=self.given.data,
            method=row.method,
            method_option=row.method_options,
            optimizer=row.optimizer,
            optimizer_option=row.options,
            steps=self.given.steps,
            batch_size=self.given.batch_size,
            length=self.given.length,
            learning_rate=rate,
            seed=seed,
        )
        began = time.perf_counter()
        result = train(model, settings, tokenizer=self.tokenizer)
        seconds = time.perf_counter() - began
        print(f"{row.title} at {rate:g}, seed {seed}: {seconds:.1f} s", file=sys.stderr)
        return Trained(
            self.loss(result.model),
            result.losses,
            result.record["parameters"],
            result.state_bytes,
            seconds,
        )

    @torch.no_grad()
    def loss(self, model) -> float:
        chunks = torch.arange(len(self.valid)).split(16)
        found = [float(next_token_loss(model, self.valid, "float32", rows)) for rows in chunks]
        return sum(found) / len(found)


def measure(bench: Bench, row: Row) -> tuple[float, list[Trained], dict[float, float]]:
    """Return the best rate, its runs, the first of them with seed 0, and all rates' losses."""
    tried = {}
    for rate in row.rates:
        try:
            tried[rate] = bench.run(row, rate, 0)
        except Exception as error:  # a rate that diverges is a result
            warnings.warn(f"{row.title} at {rate}: {error}", stacklevel=2)
    best = min(tried, key=lambda rate: tried[rate].loss)
    more = [bench.run(row, best, seed) for seed in range(1, bench.given.seeds)]
    losses = {r: tried[r].loss if r in tried else float("nan") for r in row.rates}
    return best, [tried[best], *more], losses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--part", choices=("optimizers", "methods"), default="optimizers")
    parser.add_argument("--only", help="titles of rows, separated by semicolons")
    parser.add_argument("--rates", type=float, nargs="+", help="of all rows but the first")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file of runs, one line each")
    given = parser.parse_args(arguments)
    bench, rows = Bench(given), METHODS if given.part == "methods" else OPTIMIZERS
    if given.only:
        wanted = {title.strip() for title in given.only.split(";")}
        rows = [row for row in rows if row.title in wanted | {rows[0].title}]
    if given.rates:
        rows = [rows[0], *(replace(row, rates=tuple(given.rates)) for row in rows[1:])]
    tokens = given.batch_size * given.length
    print(f"{Path(given.config).name}, {given.layers} blocks, {given.steps} steps of {tokens}")
    print(
        "| row | best rate | loss (seeds) | other rates | tokens to | parameters | state, bytes"
        " | ms per step |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    target = None
    for row in rows:
        best, runs, losses = measure(bench, row)
        target = target or runs[0].smoothed[-1]
        others = ", ".join(f"{v:.3f} ({r:g})" for r, v in losses.items() if r != best)
        reached = [run.steps_to(target) for run in runs]
        seen = [step * tokens for step in reached if step is not None]
        reach = f"{statistics.median(seen) / 1000:.0f}k" if len(seen) == len(runs) else "not"
        spread = ", ".join(f"{run.loss:.3f}" for run in runs)
        pace = 1000 * min(run.seconds for run in runs) / given.steps
        cells = row.title, f"{best:g}", spread, others, reach, f"{runs[0].parameters:,}"
        print(f"| {' | '.join(cells)} | {runs[0].state_bytes:,} | {pace:.1f} |", flush=True)


if __name__ == "__main__":
    main()
