"""DLRMamba's claim: structure-aware distillation brings a cut state map back.

    python benchmarks/state_space_distillation.py

Sequences of random vectors are to be given back --delay steps later. The teacher has a dense
map of --state states, the student its truncation to --rank, which is then trained on the task
alone or with the losses of states, outputs and map beside it, for as many steps. Errors are
relative to the targets' energy, on new sequences. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import mean, stdev

import torch
from torch import Tensor

from spectrim.nn.low_rank_state_space import LowRankStateSpace, structure_losses

LENGTH, FEATURES, BATCH = 16, 2, 32
RATES = (1e-3, 3e-3, 1e-2)


def batches(seed: int, count: int, delay: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(BATCH, LENGTH, FEATURES, generator=generator)
        y = torch.zeros_like(x)
        y[:, delay:] = x[:, :-delay]
        yield x, y


@torch.no_grad()
def error(model: LowRankStateSpace, given: argparse.Namespace) -> float:
    pairs = [
        (float((model(x) - y).square().sum()), float(y.square().sum()))
        for x, y in batches(10**6, 8, given.delay)
    ]
    return sum(away for away, _ in pairs) / sum(whole for _, whole in pairs)


def trained(
    model: LowRankStateSpace,
    given: argparse.Namespace,
    rate: float,
    seed: int,
    teacher: LowRankStateSpace | None = None,
) -> float:
    """Train on the task, with a teacher also on the structure losses; return the error."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps)
    for x, y in batches(seed, given.steps, given.delay):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        if teacher is not None:
            loss = loss + sum(structure_losses(model, teacher, x).values())
        loss.backward()
        optimizer.step()
        schedule.step()
    return error(model, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--delay", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        torch.manual_seed(seed)
        teacher = LowRankStateSpace(FEATURES, given.state)
        found = {"teacher": trained(teacher, given, 3e-3, 100 + seed)}
        found["cut"] = error(teacher.truncated(given.rank), given)
        for title, guide in (("task alone", None), ("with its losses", teacher)):
            ends = [
                trained(teacher.truncated(given.rank), given, rate, 200 + seed, guide)
                for rate in RATES
            ]
            found[title] = min(ends)
        for title, value in found.items():
            rows.setdefault(title, []).append(value)
    print("| model | error |\n|---|---:|")
    for title, values in rows.items():
        print(f"| {title} | {mean(values):.4f} ± {stdev(values):.4f} |")


if __name__ == "__main__":
    main()
