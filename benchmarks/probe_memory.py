"""Memory of a process's own while whole plans are measured, beyond the loaded model.

    python benchmarks/probe_memory.py MODEL [--tokens 1369 --length 512]

The kernel's count of anonymous memory (RssAnon), read every 5 ms, while the original's
probabilities are recorded and while one plan is compared with them; random tokens, one thread.
1369 is what the default measures plans of SmolLM2-135M on.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

import torch

from spectrim.data import TokenBlocks
from spectrim.pipeline.loaded_model import load_model
from spectrim.planning.probe import Probe
from spectrim.planning.probe_tokens import first_tokens

MIB = 2**20
SECONDS = 0.005


class Peak:
    """The highest of a watched process's own memory since the last look, in bytes."""

    def __init__(self) -> None:
        self.base, self.highest = self.now(), 0
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def now() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    def look(self) -> float:
        """Return the peak beyond the start in MiB, and begin anew."""
        found, self.highest = max(self.highest, self.now()) - self.base, 0
        return found / MIB

    def _watch(self) -> None:
        while True:
            self.highest = max(self.highest, self.now())
            time.sleep(SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1369)
    parser.add_argument("--length", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(given.model).model
    torch.manual_seed(0)
    rows = -(-given.tokens // given.length)
    ids = torch.randint(model.config.vocab_size, (rows, given.length))
    blocks = first_tokens(TokenBlocks(ids, None, "", "random", rows), given.tokens)
    with torch.inference_mode():
        model(input_ids=ids[:1, :16])
    peak = Peak()
    probe = Probe(model, blocks, given.tokens)
    recording, held = peak.look(), (peak.now() - peak.base) / MIB
    probe.divergence({}, {})
    print("| recording | held then | comparing |")
    print("|---|---|---|")
    print(f"| {recording:,.0f} MiB | {held:,.0f} MiB | {peak.look():,.0f} MiB |")


if __name__ == "__main__":
    main()
