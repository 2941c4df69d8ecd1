"""`make demo`: the main job on the bundled model, from compressing to generating.

    python scripts/demo.py OUT

Compresses the reference model at budget 0.7 with the default recipe and, for comparison,
with plain SVD and SVD-LLM at the same budget; prints one table; then loads the saved
checkpoint in a new process through transformers and generates a few tokens.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from spectrim import checkpoint
from spectrim.cli.progress import track
from spectrim.cli.threads import leave_busy_cores
from spectrim.data import BlockSettings
from spectrim.pipeline.benchmark import Bench, BenchSettings
from spectrim.pipeline.benchmark import bench as run_bench
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.presets import PRESETS
from spectrim.pipeline.recipe import ProbeRecipe
from spectrim.pipeline.replace import replace_layers
from spectrim.report.card import card_for
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext

BUDGET = 0.7
PROMPT = "def read(self, path):\n    "
GENERATE = f"""
import spectrim
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({{path!r}})
tokenizer = AutoTokenizer.from_pretrained({{path!r}})
ids = tokenizer({PROMPT!r}, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0]))
"""


def main(out: Path) -> None:
    logging.disable_progress_bar()
    leave_busy_cores()
    model, tokenizer = checkpoint.load("reference", dtype=torch.float32)
    stored = checkpoint.stored_dtype("reference") or torch.float32
    settings = BlockSettings(length=256, max_tokens=20_000, seed=0, keep_tail=True)
    cache = Cache(out.parent / "cache")
    bench = BenchSettings(("python:held_out",), settings, stored, cache=cache, track=track)
    default = PRESETS["default"].with_changes(budget=BUDGET)
    baseline = {"allocation": "uniform", "layer": "lowrank", "budget": BUDGET}
    plain = ProbeRecipe(per_layer=False, joint=False)
    recipes = {
        "svd (uniform, plain factors)": default.with_changes(
            method="svd", probe=plain, **baseline
        ),
        "svd_llm (uniform, plain factors)": default.with_changes(
            method="svd_llm", probe=plain, **baseline
        ),
        "default: obd (loss-optimal, pivoted)": default,
    }
    _print_table(run_bench(model, tokenizer, recipes, [BUDGET], bench))

    decomposition = factorize(model, tokenizer, default, RunContext(cache))
    plan = run_plan(decomposition, default)
    smaller = replace_layers(model, decomposition, plan, stored)
    card = card_for("reference", plan, default)
    extras = {"spectrim_recipe.yaml": default.to_yaml(), "spectrim_plan.yaml": plan.to_yaml()}
    options = checkpoint.SaveOptions(card=card, extras=extras, overwrite=True)
    checkpoint.save_compressed(
        smaller, tokenizer, out, smaller.config.quantization_config, options
    )
    print(f"\nsaved to {out}; a new process imports spectrim, loads it and writes:\n")
    subprocess.run([sys.executable, "-c", GENERATE.format(path=str(out))], check=True)


def _print_table(bench: Bench) -> None:
    table = Table(title=f"reference model, held-out Python sources, budget {BUDGET}")
    for name in ("method", "kept", "bytes on disk", "predicted", "measured", "perplexity"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    [perplexity] = bench.dense.perplexity.values()
    table.add_row("dense", "1.000", f"{bench.dense.file_bytes:,}", "", "", f"{perplexity:.2f}")
    for row in bench.rows:
        [increase], [perplexity] = row.loss_increase.values(), row.perplexity.values()
        table.add_row(
            row.name,
            f"{row.kept:.3f}",
            f"{row.file_bytes:,}",
            f"+{row.predicted_loss:.3f}",
            f"+{increase:.3f}",
            f"{perplexity:.2f}",
        )
    Console(width=110).print(table)
    print("predicted and measured: loss increase in nats per token")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
