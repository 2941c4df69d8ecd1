"""FedSVD against FFA-LoRA: clients that train B, with A refactored by the server or fixed.

    python benchmarks/federated_adapters.py MODEL --train new.jsonl --field question \
        --valid new_test.jsonl

Rows go to the clients by the mean of their tokens' numbers, so that no two see the same kind of
text. Each round every client takes a few steps of SGD from the server's state; the loss is that
of the server's model on held-out rows. All average B over one A, which is exact; they differ in
whether the server then turns A to the directions of the aggregate.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

import spectrim
from spectrim.adapters import config_class
from spectrim.adapters.fedsvd import aggregate, refactor
from spectrim.data import BlockSettings, token_blocks

State = dict[str, Tensor]


def average(states: list[State]) -> State:
    """FFA-LoRA's server: the mean of B, A as it was."""
    return {key: torch.stack([s[key] for s in states]).mean(0) for key in states[0]}


def orthonormal(state: State) -> State:
    """The start with A's rows orthonormal, as after a first round of FedSVD."""
    made = dict(state)
    for key in [key for key in made if key.endswith("_fixed.A")]:
        down = made[key].double()
        made[key] = refactor(torch.eye(len(down)).double(), down)[1].to(made[key])
    return made


SERVERS: dict[str, tuple[Callable[[State], State], Callable[[list[State]], State]]] = {
    "FFA-LoRA": (dict, average),
    "FFA-LoRA, A orthonormal": (orthonormal, average),
    "FedSVD": (dict, aggregate),
}


def federated(
    model: Any, shares: list[Tensor], server: str, rate: float, given: argparse.Namespace
) -> State:
    """Return the server's state after all rounds."""
    begin, merge = SERVERS[server]
    state = begin(get_peft_model_state_dict(model))
    for number in range(given.rounds):
        states = []
        for share in shares:
            set_peft_model_state_dict(model, state)
            optimizer = torch.optim.SGD(
                [p for p in model.parameters() if p.requires_grad], rate
            )
            for step in range(given.steps):
                at = (number * given.steps + step) * given.rows % len(share)
                ids = share[at : at + given.rows]
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            states.append(copy.deepcopy(get_peft_model_state_dict(model)))
        state = merge(states)
    return state


@torch.no_grad()
def loss_of(model: Any, ids: Tensor) -> float:
    return mean(float(model(input_ids=part, labels=part).loss) for part in ids.split(32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--field")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="of a client in a round")
    parser.add_argument("--rows", type=int, default=8, help="per step")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rates", default="0.3,1,3")
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    base, tokenizer = spectrim.load(given.model, dtype=torch.float32)

    def read(place: str, count: int) -> Tensor:
        settings = BlockSettings(count, given.length, 0)
        return token_blocks(place, tokenizer, settings, given.field).ids

    needed = given.clients * given.rounds * given.steps * given.rows
    train, valid = read(given.train, needed), read(given.valid, 256)
    shares = list(train[train.float().mean(1).argsort()].chunk(given.clients))
    chosen, reported = valid[::2], valid[1::2]
    print("| server | rate | held-out loss |\n|---|---:|---:|")
    for server in SERVERS:
        best: tuple[float, float, list[float]] | None = None
        for rate in map(float, given.rates.split(",")):
            picked, told = [], []
            for seed in map(int, given.seeds.split(",")):
                torch.manual_seed(seed)
                config = config_class("fedsvd")(r=given.rank, alpha=given.rank)
                model = get_peft_model(copy.deepcopy(base), config).eval()
                set_peft_model_state_dict(model, federated(model, shares, server, rate, given))
                picked.append(loss_of(model, chosen))
                told.append(loss_of(model, reported))
            if best is None or mean(picked) < best[0]:
                best = mean(picked), rate, told
        assert best is not None
        spread = f" ± {stdev(best[2]):.3f}" if len(best[2]) > 1 else ""
        print(f"| {server} | {best[1]:g} | {mean(best[2]):.3f}{spread} |", flush=True)


if __name__ == "__main__":
    main()
