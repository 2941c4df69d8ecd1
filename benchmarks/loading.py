"""Time and memory of `from_pretrained`, of a dense and of compressed checkpoints.

    python benchmarks/loading.py DENSE COMPRESSED [COMPRESSED ...] [--repeats 3]

Every load is a process of its own, one thread; files are in the system's cache after the first
one. Seconds are processor time, the least of the repeats, of `from_pretrained` and of the
first forward pass (16 tokens); memory is what the process holds beyond its libraries at the
highest of each, from the kernel's own count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="load here, print JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_load(given.models[0])))
        return
    print("| model | files | load | peak | first pass | peak | load / dense | peak / dense |")
    print("|---|---|---|---|---|---|---|---|")
    rows = {name: _best(name, given.repeats) for name in given.models}
    dense = rows[given.models[0]]
    for name, row in rows.items():
        times = f"{row['load']:.2f} s | {row['load_peak'] / MB:,.0f} MB "
        times += f"| {row['first']:.2f} s | {row['first_peak'] / MB:,.0f} MB"
        shares = [row["load"] / dense["load"], row["first_peak"] / dense["first_peak"]]
        ratios = " | ".join(f"{share:.2f}" for share in shares)
        print(f"| {Path(name).name} | {_files(name) / MB:,.0f} MB | {times} | {ratios} |")


def _best(name: str, repeats: int) -> dict[str, float]:
    """Return the least of each figure."""
    command = [sys.executable, __file__, name, "--one"]
    runs = []
    for _ in range(repeats):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: min(run[key] for run in runs) for key in runs[0]}


def _load(name: str) -> dict[str, float]:
    import time

    import torch
    from transformers import AutoModelForCausalLM

    import spectrim  # noqa: F401  (reads compressed checkpoints)

    torch.set_num_threads(1)
    base = _status("VmRSS")
    _reset_peak()
    started = time.process_time()
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()
    loaded = time.process_time()
    load_peak = _status("VmHWM") - base
    with torch.inference_mode():
        model(input_ids=torch.arange(16)[None])
    return {
        "load": loaded - started,
        "load_peak": load_peak,
        "first": time.process_time() - loaded,
        "first_peak": _status("VmHWM") - base,
    }


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024.0


def _files(name: str) -> int:
    return sum(path.stat().st_size for path in Path(name).glob("*.safetensors"))


if __name__ == "__main__":
    main()
