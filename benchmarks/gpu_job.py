"""Calibration and decomposition of some blocks of a Llama shape on a GPU: the rates of the job.

    python benchmarks/gpu_job.py [--shape 8B --blocks 4 --sequences 16 --length 2048]

Random weights in float32 without tf32, OBD, wide sides summed through the weights, everything
on the device. Seconds are those of the second of two runs; hours of the whole model are for the
tokens that the default takes, from the seconds of a token and of a block. `--device cpu` runs
the same on a processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from cost_model import Work, default_tokens
from scaling_arithmetic import SHAPES, Shape
from transformers import LlamaConfig, LlamaForCausalLM

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.data import TokenBlocks
from spectrim.models.targets import find_targets
from spectrim.pipeline.decompose import decompose
from spectrim.statistics import Calibration

STATISTICS = ("gradient_covariance", "input_covariance")
TINY = Shape("tiny", 256, 704, 2, 64, 512)
GIB = 2**30


def main() -> None:
    given = _arguments()
    torch.set_default_device(given.device)
    whole = next(shape for shape in (*SHAPES, TINY) if shape.name == given.shape)
    part = replace(whole, blocks=min(given.blocks, whole.blocks))
    tokens = given.sequences * given.length
    model = _model(part, given.length)
    ids = torch.randint(part.words, (given.sequences, given.length))
    blocks = TokenBlocks(ids, None, "random", "random", given.sequences)
    settings = CalibrationSettings(
        STATISTICS, tokens_per_batch=given.tokens_per_batch, wide="projected"
    )
    targets = find_targets(model)
    calibration, passing = _second(lambda: calibrate(model, targets, blocks, settings))
    solving = _second(lambda: decompose(model, calibration))[1]
    _print(given, (whole, part), tokens, (passing, solving))


def _model(shape: Shape, length: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.words,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.width // 64,
        num_key_value_heads=shape.keys // 64,
        max_position_embeddings=length,
    )
    return LlamaForCausalLM(config).eval()


def _second(run: Callable[[], Any]) -> tuple[Calibration, float]:
    """Return the result and the seconds of the second of two runs."""
    run()
    _finish()
    begun = time.perf_counter()
    result = run()
    _finish()
    return result, time.perf_counter() - begun


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _product_rate(dtype: torch.dtype, width: int) -> float:
    first, second = (torch.randn(width, width, dtype=dtype) for _ in range(2))
    seconds = min(_second(lambda: first @ second)[1] for _ in range(5))
    return 2 * width**3 / seconds


def _print(
    given: argparse.Namespace,
    shapes: tuple[Shape, Shape],
    tokens: int,
    seconds: tuple[float, float],
) -> None:
    whole, part = shapes
    here, all_of_it = Work(part, tokens), Work(whole, default_tokens(whole))
    width = 8192 if given.device == "cuda" else 512
    print("| step | seconds | TFLOP/s | of a product's | whole model, hours |")
    print("|---|---|---|---|---|")
    steps = (
        ("calibrating", here.passes, all_of_it.passes, torch.float32),
        ("decomposing", here.solved, all_of_it.solved, torch.float64),
    )
    for (name, done, ahead, dtype), taken in zip(steps, seconds, strict=True):
        rate, limit = done / taken, _product_rate(dtype, width)
        cells = (
            f"{taken:.2f} | {rate / 1e12:.3f} | {rate / limit:.2f} | {ahead / rate / 3600:.3f}"
        )
        print(f"| {name} | {cells} |")
    peak = torch.cuda.max_memory_allocated() / GIB if given.device == "cuda" else 0.0
    what = f"{part.blocks} of {whole.blocks} blocks of {whole.name}, {tokens:,} tokens"
    print(f"\n{what}; at most {peak:.1f} GiB of the device")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="8B", choices=[s.name for s in (*SHAPES, TINY)])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--tokens-per-batch", type=int, default=4096)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
