"""Memory, disk, traffic and work of streaming for Llama shapes: the tables of docs/scaling.md.

    python benchmarks/scaling_arithmetic.py [--sequences 256 --length 2048]

Counts, no measurements. The memory is the sum that `--memory` plans with.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

GIB = 2**30
CALIBRATING, DECOMPOSING = 0.71, 0.8
"""Measured on one thread, of the rate of a large matrix product in float32 and in float64."""


@dataclass(frozen=True)
class Shape:
    """Llama 3: width, inner width, blocks, width of keys and values, words."""

    name: str
    width: int
    inner: int
    blocks: int
    keys: int
    words: int = 128_256

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(out, in) of a block's linear layers."""
        w, i, k = self.width, self.inner, self.keys
        return [(w, w), (k, w), (k, w), (w, w), (i, w), (i, w), (w, i)]

    @property
    def block(self) -> int:
        return sum(out * inner for out, inner in self.layers)

    @property
    def inputs(self) -> list[tuple[int, int]]:
        """Of a block's different inputs, q/k/v, o, gate/up, down: width of what is summed, and
        of the diagonal beside it where that is through the weight."""
        return [(self.width, 0), (self.width, 0), (self.width, 0), (self.width, self.inner)]

    @property
    def gradients(self) -> list[tuple[int, int]]:
        """The same of the layers' gradients."""
        return [(min(out, inner), out * (out > inner)) for out, inner in self.layers]


SHAPES = (
    Shape("1.2B", 2048, 5632, 22, 512, 32_000),
    Shape("8B", 4096, 14_336, 32, 1024),
    Shape("70B", 8192, 28_672, 80, 1024),
    Shape("405B", 16_384, 53_248, 126, 1024),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--tflops", type=float, nargs=2, default=(67.0, 67.0))
    given = parser.parse_args()
    tokens = given.sequences * given.length
    print("| model | whole model | one block | streaming, at least | disk | read and written |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        print(_room(shape, tokens, given.length))
    print()
    print("| model | passes, PFLOP | sums, PFLOP | decompositions, PFLOP |")
    print("|---|---|---|---|")
    for shape in SHAPES:
        print(_work(shape, tokens))
    print()
    print("| model | calibrating, h | decomposing, h | both | on eight |")
    print("|---|---|---|---|---|")
    for shape in SHAPES:
        print(_hours(shape, tokens, (given.tflops[0] * 1e12, given.tflops[1] * 1e12)))


def _room(shape: Shape, tokens: int, length: int) -> str:
    block = 4 * shape.block
    weights = shape.blocks * block + 8 * shape.width * shape.words
    inputs = 8 * sum(n**2 + more for n, more in shape.inputs)
    gradients = 8 * sum(n**2 + more for n, more in shape.gradients)
    statistics = shape.blocks * (inputs + gradients)
    numbers = sum(min(out, inner) * (out + inner) for out, inner in shape.layers)
    factors = 4 * shape.blocks * numbers
    hidden = 4 * tokens * shape.width
    activations = hidden * (shape.blocks + 2)
    whole = 2 * weights + statistics + 2 * factors
    ends = 2 * 8 * shape.width * shape.words + 6 * 4 * length * shape.words
    row = 3 * 4 * length * (sum(map(sum, shape.layers)) + 8 * shape.width)
    summing = 2 * block + max(inputs, gradients) + row + 8 * shape.inner**2
    solving = 3 * block + max(map(_decomposing, shape.layers))
    peak = max(ends, summing, solving)
    traffic = 4 * weights // 2 + 4 * activations + 3 * statistics + 2 * factors
    sizes = (whole, block, peak, statistics + factors + activations, traffic)
    return f"| {shape.name} | " + " | ".join(map(_shown, sizes)) + " |"


def _decomposing(layer: tuple[int, int]) -> int:
    """As `spectrim.pipeline.memory_plan` counts it."""
    out, inner = layer
    small = min(layer)
    matrices = 4 * small**2 + 6 * (small**2 + max(layer)) + 6 * small**2
    return 8 * (matrices + 3 * out * inner + small * (out + inner))


def _operations(shape: Shape, tokens: int) -> tuple[float, float, float]:
    """Of passes, sums and decompositions."""
    head = shape.width * shape.words
    passes = 6 * tokens * shape.blocks * shape.block + 4 * tokens * head
    squares = sum(n**2 for n, _ in shape.inputs + shape.gradients)
    sums = tokens * shape.blocks * squares
    solving = shape.blocks * sum(solving(shape, layer) for layer in shape.layers)
    return passes, sums, solving


def _work(shape: Shape, tokens: int) -> str:
    operations = _operations(shape, tokens)
    digits = 2 if operations[2] < 1e15 else 0
    figures = [f"{value / 1e15:,.{digits}f}" for value in operations]
    return f"| {shape.name} | " + " | ".join(figures) + " |"


def _hours(shape: Shape, tokens: int, rates: tuple[float, float]) -> str:
    """On one and on eight devices of so many operations per second in float32 and float64, by
    the shares of a matrix product's rate that were measured."""
    passes, sums, solving = _operations(shape, tokens)
    calibrating = (passes + sums) / (CALIBRATING * rates[0]) / 3600
    decomposing = solving / (DECOMPOSING * rates[1]) / 3600
    both = calibrating + decomposing
    figures = (calibrating, decomposing, both, both / 8)
    return f"| {shape.name} | " + " | ".join(f"{hours:,.2f}" for hours in figures) + " |"


def solving(shape: Shape, layer: tuple[int, int], full: bool = False) -> float:
    """Cholesky factor and whitening, Gram matrix and eigenvectors of the smaller side, both
    factors, and the price of the cuts. The Gram matrix is W C W^T, and W W^T alone of a layer
    whose wider side was summed through W."""
    large, small = max(layer), min(layer)
    through = large == shape.inner and not full
    whitening = small**3 / 3 + 2 * small**3
    gram = small**2 * large + (0 if through else 2 * small * large**2)
    factors = 2 * small**3 + 2 * small**2 * large
    pricing = small**2 * (large + small)
    return whitening + gram + 9 * small**3 + factors + pricing


def _shown(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count < 100 * GIB else f"{count / GIB:,.0f} GiB"


if __name__ == "__main__":
    main()
