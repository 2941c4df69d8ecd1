"""Several processes against one: time of the statistics, and of the decompositions.

    torchrun --standalone --nproc-per-node 2 benchmarks/distributed_efficiency.py
    torchrun --standalone --nproc-per-node 2 benchmarks/distributed_efficiency.py \
             --model DIRECTORY --data TEXT

One thread per process. The first process alone and all of them take turns, so that a busy
machine slows down both; medians of wall time, exchanges included. Processor seconds, of one and
of the busiest of all, leave out waiting for a core, but also waiting for each other. Without a
model: a Llama with random weights, random tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from llama_shape import llama_config
from transformers import LlamaForCausalLM

from spectrim import checkpoint
from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.distributed import calibrate_distributed
from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.models.targets import find_targets
from spectrim.pipeline.calibration_size import batch_tokens
from spectrim.pipeline.plan import decompose
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime import distributed
from spectrim.statistics import Calibration


@dataclass(frozen=True)
class Seconds:
    """Of one step: on the clock, and of the busiest process's processor."""

    wall: float
    cpu: float


def main() -> None:
    given = _arguments()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model, blocks = _subject(given)
    targets, recipe = find_targets(model), Recipe()
    settings = CalibrationSettings(
        recipe.statistics, tokens_per_batch=batch_tokens(model, targets)
    )
    held: dict[str, Calibration] = {}

    def statistics() -> None:
        work = calibrate if distributed.num_processes() == 1 else calibrate_distributed
        held["sums"] = work(model, targets, blocks, settings)

    def decompositions() -> None:
        decompose(model, held["sums"], recipe)

    statistics()
    steps = {"statistics": statistics, "decompositions": decompositions}
    figures = {name: _compared(step, given.repeats) for name, step in steps.items()}
    if distributed.is_main_process():
        print(json.dumps({"processes": distributed.num_processes()} | figures, indent=1))
    dist.destroy_process_group()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", default="python")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def _subject(given: argparse.Namespace) -> tuple[Any, TokenBlocks]:
    if given.model is not None:
        model, tokenizer = checkpoint.load(given.model, dtype=torch.float32)
        wanted = BlockSettings(sequences=given.sequences, length=given.length)
        return model, token_blocks(given.data, tokenizer, wanted)
    heads = {"num_key_value_heads": given.hidden // 64}
    config = llama_config(
        given.hidden, given.layers, max_position_embeddings=given.length, **heads
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(config.vocab_size, (given.sequences, given.length))
    return model, TokenBlocks(ids, None, "random", "random", 1)


def _compared(step: Callable[[], None], repeats: int) -> dict[str, Any]:
    one, every = [], []
    for _ in range(repeats):
        one.append(distributed.run_on_main(lambda: _timed(step)))
        own = _timed(step)
        parts = distributed.all_gather(own)
        every.append(Seconds(max(p.wall for p in parts), max(p.cpu for p in parts)))
    wall, cpu = (
        {
            "one": round(median(getattr(each, kind) for each in one), 3),
            "all": round(median(getattr(each, kind) for each in every), 3),
        }
        for kind in ("wall", "cpu")
    )
    return {
        "seconds": wall,
        "processor_seconds": cpu,
        "faster": round(wall["one"] / wall["all"], 2),
        "faster_by_processor_seconds": round(cpu["one"] / cpu["all"], 2),
    }


def _timed(step: Callable[[], None]) -> Seconds:
    distributed.all_gather(None)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


if __name__ == "__main__":
    main()
