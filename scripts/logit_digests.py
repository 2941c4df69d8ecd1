"""Print a digest of the logits of tiny models compressed in every way, to compare revisions.

    python scripts/logit_digests.py > digests.jsonl
    python scripts/logit_digests.py --only gqa/refinement/ --seconds

One JSON line per case, sorted: its name and the first 16 hex digits of the sha256 of the logits
on fixed ids, from float32 models of fixed seeds and one thread. Two revisions compute the same
where the lines are the same. Cases have the new names at every revision (`digests.adapter`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import string
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from digests import adapter
from digests.adapter import find, fit, make_recipe, pick
from digests.recipes import (
    BASE,
    FINETUNING,
    MODELS,
    PRUNING,
    QUICK,
    TASK,
    TRAINED,
    combinations,
    corrections,
    embeddings,
    prunings,
    quick_pruning,
    settings,
)
from torch import Tensor
from torch.nn import functional
from transformers.utils import logging

import spectrim
from tests.tiny_models import TINY_MODELS, tiny_tokenizer, tiny_tokens

Case = tuple[str, Callable[[], Any]]


def cases() -> Iterator[Case]:
    for model in MODELS:
        for name, changes in combinations(model):
            yield f"{model}/{name}", partial(compressed, model, changes)
        for name, changes in corrections():
            yield f"{model}/{name}", partial(quantized, model, changes)
        yield f"{model}/offloaded", partial(offloaded, model)
    yield "gpt2/pruning", partial(compressed, "gpt2", quick_pruning("fisher"))
    yield "moe/pruning", partial(compressed, "moe", quick_pruning("kronecker"))
    for name, changes in (*settings(), *prunings()):
        yield f"gqa/{name}", partial(compressed, "gqa", changes)
    for name in ("default", "fast", "closed_form", "best", "task", "basel"):
        yield f"gqa/preset/{name}", partial(by_preset, "gqa", name)
    for name, changes in FINETUNING.items():
        yield f"gqa/finetuning/{name}", partial(finetuned, "gqa", changes)
    for layer in ("lowrank", "pivoted"):
        for model in ("gqa", "gpt2"):
            yield f"{model}/fused/{layer}", partial(fused, model, layer)
    yield "tied/embeddings/afm", partial(compressed, "tied", embeddings("afm"))
    yield "gqa/dense_export", partial(exported, "gqa")
    yield "gqa/any_module", partial(any_module, "gqa")


def recipe(changes: dict[str, Any]) -> Any:
    calibration = BASE["calibration"] | changes.get("calibration", {})
    return make_recipe(BASE | changes | {"calibration": calibration})


def compressed(name: str, changes: dict[str, Any]) -> Any:
    return adapter.compress(TINY_MODELS[name](), tiny_tokenizer(), recipe(changes))


def quantized(name: str, changes: dict[str, Any]) -> Any:
    """Compress by a quantizer, with low-rank corrections."""
    run = find(":quantize", ":compensate")
    return run(TINY_MODELS[name](), tiny_tokenizer(), recipe(changes))


def by_preset(name: str, preset: str) -> Any:
    """Run a preset on little data: its own choices, with quick options."""
    given = adapter.PRESETS[pick(preset, adapter.PRESETS)].to_dict()
    small = TASK if preset in ("task", "basel") else {}
    quick = fit(adapter.Recipe, BASE | small | {"calibration": BASE["calibration"]})
    for key in ("budget", "save_dtype", "task"):
        given[key] = quick.get(key, given[key])
    given["calibration"] |= quick["calibration"]
    field = pick("pruning", given)
    if given[field] is not None:
        given[field] |= fit(
            find("pruning:PruningOptions", "selection:SelectionOptions"), PRUNING
        )
    for step in given["refinement"]:
        step["tokens"] = None
        entry = adapter.new_name(step["name"])
        options = QUICK.get(entry, {}) | ({"tokens": 500} if entry in TRAINED else {})
        step["options"] |= fit(adapter.REFINEMENTS.get(step["name"]).Options, options)
    whole = adapter.recipe_from(given, preset)
    return adapter.compress(TINY_MODELS[name](), tiny_tokenizer(), whole)


def finetuned(name: str, changes: dict[str, Any]) -> Any:
    model = compressed(name, {"layer": "lowrank"})
    given = {"data": "text.txt", "sequences": 8, "length": 24, "steps": 3, "batch_size": 4}
    values = fit(adapter.FinetuneSettings, {**given, "learning_rate": 1e-2, **changes})
    return spectrim.finetune(model, tiny_tokenizer(), adapter.FinetuneSettings(**values))


def fused(name: str, layer: str) -> Any:
    model = compressed(name, {"layer": layer})
    spectrim.fuse(model)
    return model


def offloaded(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        TINY_MODELS[name]().save_pretrained(f"{folder}/model")
        tiny_tokenizer().save_pretrained(f"{folder}/model")
        adapter.compress_offloaded(f"{folder}/model", f"{folder}/out", recipe({}))
        return spectrim.load(f"{folder}/out")[0]


def exported(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        spectrim.save(compressed(name, {}), None, f"{folder}/out")
        export = find("checkpoint:export_dense", "hub:export_dense")
        export(f"{folder}/out", f"{folder}/dense")
        return spectrim.load(f"{folder}/dense")[0]


def any_module(name: str) -> Any:
    """Compress a model as any module, by the loss of its own next tokens."""

    def loss(model: Any, batch: Tensor) -> Tensor:
        logits = model(batch).logits[:, :-1]
        return functional.cross_entropy(logits.mT, batch[:, 1:], reduction="none").sum(1)

    batches = list(tiny_tokens(rows=16, length=12, seed=1).split(4))
    run = find(":compress_any", ":compress_module")
    return run(TINY_MODELS[name](), batches, loss, make_recipe({"budget": 0.6})).model


def write_data() -> None:
    source = random.Random(0)
    words = ["".join(source.choices(string.ascii_letters, k=5)) for _ in range(40)]
    documents = [" ".join(source.choices(words, k=150)) for _ in range(6)]
    Path("text.txt").write_text("<|endoftext|>".join(documents))
    rows = [{"prompt": f"after {n} is ", "answer": str(n + 1)} for n in range(40)]
    Path("task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@torch.no_grad()
def digest(model: Any) -> str:
    logits = model.eval()(tiny_tokens(rows=2, length=12)).logits
    if not torch.isfinite(logits).all():
        raise ValueError("logits are not finite")
    return hashlib.sha256(logits.float().contiguous().numpy().tobytes()).hexdigest()[:16]


def run(make: Callable[[], Any]) -> str:
    torch.manual_seed(0)
    try:
        return digest(make())
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return f"failed: {type(error).__name__}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Digests of the logits of tiny models.")
    parser.add_argument("--only", default="", help="Only cases whose name contains this.")
    parser.add_argument("--seconds", action="store_true", help="Time of each case, to stderr.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_data()
        for name, make in sorted(cases(), key=lambda case: case[0]):
            if options.only not in name:
                continue
            start = time.process_time()
            found = run(make)
            failed |= found.startswith("failed")
            print(json.dumps({"case": name, "digest": found}), flush=True)
            if options.seconds:
                print(f"{time.process_time() - start:6.2f} {name}", file=sys.stderr)
        os.chdir("/")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
