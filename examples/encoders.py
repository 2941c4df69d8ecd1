"""Encoders made smaller by the loss they were trained on: classes, masked words, images.

    python examples/encoders.py

Three small models of transformers (BERT with a head of classes, BERT with masked words, ViT)
are trained here on generated data and cut by three methods; printed is the share of right
answers on data that was not trained on. With a model of your own, only `loss` and the batches
change.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

import spectrim

METHODS = {"obd": "loss_optimal", "svd_llm": "uniform", "svd": "uniform"}
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
WORDS, LENGTH, MASK = 40, 12, 1
Batch = dict[str, Tensor]


class Case(NamedTuple):
    """`batch(seed, count)` makes examples with `labels`; the outputs stand at `place`."""

    make: Callable[[], nn.Module]
    batch: Callable[[int, int], Batch]
    place: int | None = None

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(n, classes)"""
        given = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**given).logits
        return logits if self.place is None else logits[:, self.place]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """One number per example, which is what spectrim asks for."""
        return cross_entropy(self.outputs(model, batch), batch["labels"], reduction="none")


def sentences(seed: int, count: int) -> Batch:
    """The class is which of three words stands in the sentence more often than the others."""
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (count, LENGTH), generator=source)
    labels = torch.randint(0, 3, (count,), generator=source)
    for place in range(4):
        ids[:, 3 * place] = 2 + (labels if place < 3 else (labels + 1) % 3)
    order = torch.rand(count, LENGTH, generator=source).argsort(1)
    return {"input_ids": ids.gather(1, order), "labels": labels}


def cloze(seed: int, count: int) -> Batch:
    """The masked word is the one that stood six places before."""
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (count, LENGTH), generator=source)
    labels = ids[:, 2].clone()
    ids[:, 8] = MASK
    return {"input_ids": ids, "labels": labels}


def pictures(seed: int, count: int) -> Batch:
    """Stripes in one of four directions, with noise."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=source)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    angles = labels * torch.pi / 4
    across = angles.cos()[:, None, None] * x + angles.sin()[:, None, None] * y
    shift = torch.rand(count, 1, 1, generator=source) * 6
    clean = torch.sin(across * 1.5 + shift)[:, None].expand(-1, 3, -1, -1)
    noise = torch.randn(count, 3, 16, 16, generator=source)
    return {"pixel_values": clean + 0.7 * noise, "labels": labels}


def _bert(kind: Any, **more: Any) -> nn.Module:
    config = BertConfig(vocab_size=WORDS, num_hidden_layers=2, **SIZES, **more)
    return kind(config)


def _vit() -> nn.Module:
    config = ViTConfig(image_size=16, patch_size=4, num_hidden_layers=2, num_labels=4, **SIZES)
    return ViTForImageClassification(config)


CASES = {
    "classes": Case(lambda: _bert(BertForSequenceClassification, num_labels=3), sentences),
    "masked words": Case(lambda: _bert(BertForMaskedLM), cloze, 8),
    "images": Case(_vit, pictures),
}


def train(model: nn.Module, case: Case, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        case.loss(model, case.batch(step, 64)).mean().backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def right(model: nn.Module, case: Case) -> float:
    batch = case.batch(-1, 512)
    return float((case.outputs(model, batch).argmax(1) == batch["labels"]).float().mean())


def main(arguments: list[str] | None = None) -> list[tuple[str, str, float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--budgets", default="0.2,0.1,0.05")
    parser.add_argument("--cases", default=",".join(CASES))
    given = parser.parse_args(arguments)
    rows = []
    print("| model | method | kept | right |\n|---|---|---|---|")
    for name in given.cases.split(","):
        case = CASES[name]
        torch.manual_seed(0)
        model = case.make()
        train(model, case, given.steps)
        rows.append((name, "original", 1.0, right(model, case)))
        print("| {} | {} | {:.2f} | {:.3f} |".format(*rows[-1]), flush=True)
        seen = [case.batch(10_000 + number, 64) for number in range(8)]
        for method, allocation in METHODS.items():
            recipe = spectrim.Recipe(method=method, allocation=allocation)
            found = spectrim.factorize_any(model, seen, case.loss, recipe)
            for budget in map(float, given.budgets.split(",")):
                plan = spectrim.plan(found, recipe.with_changes(budget=budget))
                smaller = spectrim.replace_layers(model, found, plan)
                rows.append((name, method, plan.kept, right(smaller, case)))
                print("| {} | {} | {:.2f} | {:.3f} |".format(*rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
