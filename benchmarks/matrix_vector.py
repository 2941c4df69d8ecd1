"""A matrix times one token, with its weight stored by rows and by columns, on one core.

    python benchmarks/matrix_vector.py [--shapes 49152x576,1536x576,...]

Shapes are (out, in); the runs go through enough copies that every weight comes from memory,
and take turns; the ratio is the median of ratios of runs that followed each other.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

SHAPES = (
    "49152x576,150x576,300x576,400x576,576x576,1536x576,300x1536,430x1536,576x1536,"
    "1236x300,1100x430,146x430,279x768,279x2048,700x1400,1000x1000"
)
BYTES = 150e6
MOST_COPIES = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| (out, in) | by rows | by columns | columns faster by |")
    print("|---|---|---|---|")
    for text in given.shapes.split(","):
        out, inner = map(int, text.split("x"))
        rows, columns, ratio = _compare((out, inner), given.rounds)
        rates = [4 * out * inner / seconds / 1e9 for seconds in (rows, columns)]
        cells = [
            f"{seconds * 1e6:.0f} us, {rate:.1f} GB/s"
            for seconds, rate in zip((rows, columns), rates, strict=True)
        ]
        print(f"| ({out}, {inner}) | {cells[0]} | {cells[1]} | {ratio:.2f} |", flush=True)


@torch.inference_mode()
def _compare(shape: tuple[int, int], rounds: int) -> tuple[float, float, float]:
    """Return the least seconds of a product by rows and by columns, and the median ratio."""
    copies = max(1, min(MOST_COPIES, int(BYTES // (4 * shape[0] * shape[1]))))
    weights = [torch.randn(shape) for _ in range(copies)]
    turned = [weight.T.contiguous().T for weight in weights]
    x = torch.randn(1, 1, shape[1])
    pairs = [(_seconds(weights, x), _seconds(turned, x)) for _ in range(rounds)]
    rows, columns = map(min, zip(*pairs, strict=True))
    return rows, columns, median(a / b for a, b in pairs)


def _seconds(weights: list[torch.Tensor], x: torch.Tensor) -> float:
    begun = time.process_time()
    for weight in weights:
        torch.nn.functional.linear(x, weight)
    return (time.process_time() - begun) / len(weights)


if __name__ == "__main__":
    main()
