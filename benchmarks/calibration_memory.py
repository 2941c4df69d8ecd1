"""Peak memory of calibration beyond the loaded model, against its stated bound.

    python benchmarks/calibration_memory.py [--hidden 1024 --layers 8]

Bound: gradients (as large as the weights) + statistics. Weight gradients are never formed;
the room they would take holds the activations of one batch. Random weights, one process,
peak resident set as the kernel reports it.
"""

from __future__ import annotations

import argparse
import resource

import torch
from llama_shape import llama_config
from transformers import LlamaForCausalLM

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.data import TokenBlocks
from spectrim.models.targets import find_targets
from spectrim.pipeline.calibration_size import batch_tokens

MIB = 2**20


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args()
    config = llama_config(given.hidden, given.layers)
    model = LlamaForCausalLM(config).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    targets = find_targets(model)
    tokens = batch_tokens(model, targets)
    ids = torch.randint(config.vocab_size, (max(2, 2 * tokens // 256), 256))
    blocks = TokenBlocks(ids, None, "", "random", 1)
    settings = CalibrationSettings(
        ("input_covariance", "gradient_covariance"), tokens_per_batch=tokens
    )
    before = peak()
    calibration = calibrate(model, targets, blocks, settings)
    beyond = peak() - before
    statistics = calibration.bytes / MIB
    print("| tokens per batch | model | statistics | peak beyond the model | bound | used |")
    print("|---|---|---|---|---|---|")
    bound = weights + statistics
    print(
        f"| {tokens} | {weights:.0f} MiB | {statistics:.0f} MiB | {beyond:.0f} MiB "
        f"| {bound:.0f} MiB | {beyond / bound:.0%} |"
    )


if __name__ == "__main__":
    main()
