"""Predicted against measured time of plans by time, as a table.

python benchmarks/latency_plan.py --shape llama-100m --blocks 4 --budgets 0.6,0.7,0.85
"""

from __future__ import annotations

import argparse

import torch

from spectrim.evaluation.speed import random_model
from spectrim.evaluation.speed.plan_latency import time_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-100m")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--budgets", default="0.6,0.7,0.85")
    parser.add_argument("--tokens", default="1,128")
    parser.add_argument("--layer", default="lowrank")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_model(given.shape, dtype, device, blocks=given.blocks)
    print("| tokens | budget | predicted | measured | layers left dense |")
    print("| --- | --- | --- | --- | --- |")
    for tokens in map(int, given.tokens.split(",")):
        for budget in map(float, given.budgets.split(",")):
            found = time_plan(model, budget, tokens, given.layer)
            print(
                f"| {tokens} | {budget:.2f} | {found.predicted:.3f} | {found.measured:.3f} "
                f"| {found.dense_layers} of {found.layers} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
