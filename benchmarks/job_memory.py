"""Memory of a process's own in every stage of `compress`, beyond its libraries.

    python benchmarks/job_memory.py MODEL --data TEXT [--budget .8 --sequences 6 --length 512]
    torchrun --nproc-per-node 2 benchmarks/job_memory.py MODEL --data TEXT [--fsdp]

Of several processes the first one prints. One thread, a cache in a temporary directory, the
kernel's count of anonymous memory (RssAnon) read every 20 ms; files that are mapped, as the
weights of a float32 checkpoint are, are not in it. "left" is what a stage leaves behind. Curves
are measured on the tokens of the default run of SmolLM2-135M (128 sequences of 512), so that
few sequences have its peak.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from spectrim import checkpoint
from spectrim.cli.torchrun import group
from spectrim.pipeline.compress import compress
from spectrim.pipeline.loaded_model import load_original
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext

MIB = 2**20
SECONDS = 0.02


class OwnMemory:
    """Stands in for a progress bar; peak and rest of each stage by its name, in bytes."""

    def __init__(self) -> None:
        self.base = self.now()
        self.rows: dict[str, list[int]] = {}
        self.begin("opening")
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def now() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    def begin(self, name: str) -> None:
        self.name = name
        self.rows.setdefault(name, [0, 0])

    def track(self, items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        self.begin(what)
        yield from items
        self.begin(f"after {what}")

    def _watch(self) -> None:
        while True:
            row, beyond = self.rows[self.name], self.now() - self.base
            row[0], row[1] = max(row[0], beyond), beyond
            time.sleep(SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--budget", type=float, default=0.8)
    parser.add_argument("--sequences", type=int, default=6)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--probe-tokens", type=int, default=2048)
    parser.add_argument("--joint-tokens", type=int, default=1369)
    parser.add_argument("--fsdp", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with group():
        _run(given)


def _run(given: argparse.Namespace) -> None:
    fields = {name: getattr(given, name) for name in ("data", "sequences", "length")}
    probe = {"tokens": given.probe_tokens, "joint_tokens": given.joint_tokens}
    recipe = Recipe(budget=given.budget).with_changes(
        calibration=fields, probe=probe | {"through": "block"}
    )
    meter = OwnMemory()
    original = load_original(given.model, mapped=given.fsdp)
    weights = sum(p.numel() * p.element_size() for p in original.model.parameters())
    with tempfile.TemporaryDirectory() as place:
        [place, *_] = distributed.all_gather(place)
        context = RunContext(Cache(Path(place) / "cache"), meter.track, fsdp=given.fsdp)
        result = compress(original.model, original.tokenizer, recipe, context)
        meter.begin("saving")
        config = result.model.config.quantization_config
        options = checkpoint.SaveOptions()
        output = Path(place) / "out"
        checkpoint.save_together(result.model, original.tokenizer, output, config, options)
    assert result.decomposition is not None
    factors = sum(t.nbytes for t in result.decomposition.tensors().values())
    print(f"weights {weights / MIB:,.0f} MiB, factors of all layers {factors / MIB:,.0f} MiB")
    print("| stage | peak | left | peak / weights |")
    print("|---|---|---|---|")
    for name, (peak, left) in meter.rows.items():
        sizes = f"{peak / MIB:,.0f} MiB | {left / MIB:,.0f} MiB"
        print(f"| {name} | {sizes} | {peak / weights:.2f} |")


if __name__ == "__main__":
    main()
