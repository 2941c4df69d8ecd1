"""Everything that is to be measured once on a machine with a GPU, in order.

    python scripts/gpu_tables.py OUT          # under ten minutes on one H200
    python scripts/gpu_tables.py OUT --dry    # the same order on a processor, tiny shapes

Each step is a command of its own with a limit of time; what it printed is OUT/NAME.txt, and
`bench-speed` writes its tables beside it. A step that fails does not end the others.
OUT/summary.md says what ran, how long, and how it ended.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEED = (sys.executable, "-m", "spectrim", "bench-speed")
KERNELS = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/inference/kernels")
FAILED_IN_TIME = 124


@dataclass(frozen=True)
class Step:
    """A command, what it is run with in --dry, and the seconds that it may take."""

    name: str
    command: tuple[str, ...]
    dry: tuple[str, ...]
    seconds: int


def steps(out: Path) -> list[Step]:
    """Return the steps: the machine, the kernels, the job, then speed."""
    kernels = (sys.executable, *KERNELS)
    job = (sys.executable, "benchmarks/gpu_job.py")
    tiny = ("--shape", "tiny", "--sequences", "2", "--length", "64", "--device", "cpu")
    machine = (sys.executable, "-c", "import torch; print(torch.__config__.show())")
    return [
        Step("machine", ("nvidia-smi",), machine, 30),
        Step("kernels", kernels, (*kernels, "-k", "lowrank_matmul"), 150),
        Step("job_8b", job, (*job, *tiny), 120),
        _speed(out, "llama_7b", "--batches 1,16 --lengths 2048 --kernels", 120),
        _speed(out, "llama_7b_compiled", "--batches 1 --lengths 2048 --compile", 120),
        _speed(out, "bert_base", "--batches 8 --lengths 512 --kernels --tiles", 60),
    ]


def _speed(out: Path, name: str, options: str, seconds: int) -> Step:
    shape = "bert-base" if name == "bert_base" else "llama-7b"
    common = (*SPEED, "--keep", "0.5", "-o", str(out / name))
    gpu = ("--shape", shape, "--device", "cuda", "--dtype", "bfloat16", *options.split())
    small = "bert-base" if name == "bert_base" else "llama-100m"
    dry = f"--shape {small} --blocks 1 --device cpu --batches 1 --lengths 32 --rounds 3"
    return Step(name, (*common, *gpu), (*common, *dry.split(), "--steps", "2"), seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry", action="store_true", help="on a processor, tiny shapes")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines = ["| step | seconds | ended with | command |", "|---|---|---|---|"]
    codes = []
    for step in steps(given.out.resolve()):
        command = step.dry if given.dry else step.command
        code, seconds = _run(step, command, given.out)
        codes.append(code)
        shown = " ".join(command).replace(sys.executable, "python").replace("|", "\\|")
        lines.append(f"| {step.name} | {seconds:.0f} | {code} | `{shown}` |")
        print(lines[-1], flush=True)
        (given.out / "summary.md").write_text("\n".join(lines) + "\n")
    return 1 if any(codes) else 0


def _run(step: Step, command: tuple[str, ...], out: Path) -> tuple[int, float]:
    """Return the exit code and the seconds; the output is written as it comes."""
    begun = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (out / f"{step.name}.txt").open("w") as file:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=step.seconds,
                check=False,
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = FAILED_IN_TIME
        except OSError as error:
            file.write(f"{error}\n")
            code = 127
    return code, time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
