"""What the default compression costs: measured by stage, predicted, and extrapolated.

    python benchmarks/cost_model.py measure MODEL|WIDTHxBLOCKS --data TEXT -o DIR
    python benchmarks/cost_model.py table DIR [--cores 32 --tflops 67 67]

`measure` runs `compress` with the default recipe at keep .6 (with statistics averaged along the
path; --budget .8 is without) and measured curves on one thread, and writes the processor
seconds and peak memory of every stage beside what `--dry-run` says. WIDTHxBLOCKS is a Llama
with random weights. `table` prints predicted against measured, the rate of every stage as a
share of what a large matrix product reaches in the same process, and from the shares of the
widest model that ran a stage, hours for Llama shapes with the tokens that the default takes.
Hours are for what was not run: arithmetic.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from llama_shape import llama_config
from scaling_arithmetic import SHAPES, Shape, solving
from stage_meter import StageMeter
from transformers import LlamaForCausalLM

from spectrim.pipeline.calibration_defaults import FEWEST_TOKENS, MOST_TOKENS, TOKENS_PER_WIDTH
from spectrim.pipeline.compress import compress
from spectrim.pipeline.cost import RANK_SHARE, estimate_stages
from spectrim.pipeline.inputs import calibration_blocks
from spectrim.pipeline.loaded_model import load_model
from spectrim.pipeline.peak_memory import peak_in_memory
from spectrim.pipeline.recipe import Recipe
from spectrim.planning.measured import JOINT_BUDGETS, LAYER_BUDGETS
from spectrim.planning.probe_tokens import PassCosts, ProbeTokens
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.runtime.memory import resident_bytes
from spectrim.statistics import is_few

PASSES, PATH, SOLVING, PROBING = (
    "calibrating",
    "calibrating along the path",
    "decomposing",
    "measuring curves",
)
STAGES = (PASSES, PATH, SOLVING, PROBING)
PATH_SHARE = 0.25
EFFICIENCY = 0.75
"""Assumed of many cores, and of eight GPUs, against one."""
LAYERS_OF_A_BLOCK = 7
GIB, MIB = 2**30, 2**20


def main() -> None:
    given = _arguments()
    if given.action == "measure":
        given.output.mkdir(parents=True, exist_ok=True)
        found = _measure(given)
        (given.output / f"{found['name']}.json").write_text(json.dumps(found, indent=1))
        print(json.dumps(found))
        return
    rows = [json.loads(path.read_text()) for path in sorted(given.place.glob("*.json"))]
    rows.sort(key=lambda row: (row["shape"]["width"], row["shape"]["blocks"]))
    _print_predictions(rows)
    _print_rates(rows)
    _print_hours({stage: _widest_share(rows, stage) for stage in STAGES}, given, rows[-1])


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    name, model, tokenizer = _model(given.model)
    calibration = {"data": str(given.data)} | {
        field: getattr(given, field)
        for field in ("sequences", "length")
        if getattr(given, field) is not None
    }
    recipe = Recipe(budget=given.budget).with_changes(calibration=calibration)
    limits = _product_rate(torch.float32), _product_rate(torch.float64)
    predicted = {s.name: s.seconds for s in estimate_stages(model, tokenizer, recipe)}
    before, bound = resident_bytes(), peak_in_memory(model, recipe)
    meter = StageMeter()
    meter.begin("opening")
    result = compress(model, tokenizer, recipe, RunContext(Cache(None), meter.track))
    meter.begin("end")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert result.decomposition is not None
    factors = sum(t.nbytes for t in result.decomposition.tensors().values())
    return {
        "name": name,
        "shape": _shape_of(name, model),
        "tokens": calibration_blocks(model, tokenizer, recipe).tokens,
        "limits": limits,
        "predicted": predicted,
        "measured": _stages(meter),
        "bound_mib": bound / MIB,
        "before_mib": before / MIB,
        "peak_mib": {stage: row["peak_mib"] for stage, row in meter.rows.items()},
        "weights_mib": weights / MIB,
        "factors_mib": factors / MIB,
    }


def _model(name: str) -> tuple[str, Any, Any]:
    if "x" not in name or Path(name).exists():
        loaded = load_model(name)
        return Path(name).name, loaded.model, loaded.tokenizer
    width, blocks = map(int, name.split("x"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(width, blocks)).eval()
    return name, model, load_model("reference").tokenizer


def _shape_of(name: str, model: Any) -> dict[str, Any]:
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "name": name,
        "width": config.hidden_size,
        "inner": config.intermediate_size,
        "blocks": config.num_hidden_layers,
        "keys": head * config.num_key_value_heads,
        "words": config.vocab_size,
    }


def _product_rate(dtype: torch.dtype, width: int = 1024) -> float:
    """Return operations per second of the best of a few matrix products."""
    first, second = (torch.randn(width, width, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        first @ second
        seconds.append(time.process_time() - begun)
    return 2 * width**3 / min(seconds)


def _stages(meter: StageMeter) -> dict[str, float]:
    """Return processor seconds; what follows the last decomposition belongs to measuring."""
    found = dict.fromkeys(STAGES, 0.0)
    for name, row in meter.rows.items():
        plain = name.removeprefix("after ").split(", ")[0]
        stage = PROBING if name == f"after {SOLVING}" else plain
        if stage in found:
            found[stage] += row["cpu_seconds"]
    return found


@dataclass(frozen=True)
class Work:
    """Operations of the stages for a shape and a number of calibration tokens.

    With too few of these, covariances of wide sides are summed in full.
    """

    shape: Shape
    tokens: int

    @property
    def full(self) -> bool:
        return is_few(self.tokens, self.shape.inner)

    def of(self, stage: str) -> float:
        return {
            PASSES: self.passes,
            PATH: PATH_SHARE * (self.passes + self.tokens * self._through),
            SOLVING: 2 * self.solved,
            PROBING: 2 * self._weights * self._probed,
        }[stage]

    @property
    def _weights(self) -> int:
        return self.shape.blocks * self.shape.block + self.shape.width * self.shape.words

    @property
    def passes(self) -> float:
        """Forward, backward to the inputs, and one symmetric product per covariance."""
        pairs = self.shape.inputs + self.shape.gradients
        squares = sum((max(n, wide) if self.full else n) ** 2 for n, wide in pairs)
        return self.tokens * (4 * self._weights + self.shape.blocks * squares)

    @property
    def _through(self) -> float:
        """Products with the weights that a cut model does not hold, of wide layers."""
        wide = 0 if self.full else 3 * self.shape.width * self.shape.inner
        return 2 * self.shape.blocks * wide

    @property
    def solved(self) -> float:
        """All layers once."""
        return self.shape.blocks * sum(
            solving(self.shape, layer, self.full) for layer in self.shape.layers
        )

    @property
    def _probed(self) -> float:
        """Passes of one token, as `spectrim.pipeline.plan.choose_tokens` allows."""
        blocks = {str(n): self.shape.block / self._weights for n in range(self.shape.blocks)}
        costs = PassCosts(blocks, self.shape.width * self.shape.words / self._weights)
        layers = {
            (f"{block}.{layer}",): len(LAYER_BUDGETS)
            for block in blocks
            for layer in range(LAYERS_OF_A_BLOCK)
        }
        held = max(2, max(2 * self._weights, 256 * MIB) // (4 * self.shape.words))
        tokens = ProbeTokens.within(self.tokens, costs, layers, len(JOINT_BUDGETS))
        tokens = tokens.at_most(held)
        passes = costs.passes(layers, tokens.through)
        products = len(JOINT_BUDGETS) + (len(LAYER_BUDGETS) if tokens.through == "model" else 1)
        whole_plans = (1 + len(JOINT_BUDGETS)) * tokens.joint
        return tokens.layers * passes + whole_plans + products * self._factors

    @property
    def _factors(self) -> float:
        """Passes of one token that the products of all layers' factors cost."""
        sizes = [RANK_SHARE * min(layer) * layer[0] * layer[1] for layer in self.shape.layers]
        return self.shape.blocks * sum(sizes) / self._weights


def _rate(row: dict[str, Any], stage: str) -> float:
    work = Work(Shape(**row["shape"]), row["tokens"]).of(stage)
    if stage == SOLVING and not row["measured"][PATH]:
        work /= 2  # decomposed once
    return work / row["measured"][stage]


def _share(row: dict[str, Any], stage: str) -> float:
    return _rate(row, stage) / row["limits"][stage == SOLVING]


def _widest_share(rows: list[dict[str, Any]], stage: str) -> float:
    """Return the share of the widest model that ran the stage."""
    return next(_share(row, stage) for row in reversed(rows) if row["measured"][stage])


def _print_predictions(rows: list[dict[str, Any]]) -> None:
    print("| model | tokens | " + " | ".join(STAGES) + " | in all | peak |")
    print("|---|---|" + "---|" * (len(STAGES) + 2))
    for row in rows:
        both = [(row["predicted"].get(s, 0.0), row["measured"][s]) for s in STAGES]
        both.append((sum(p for p, _ in both), sum(m for _, m in both)))
        cells = [f"{p:.1f} / {m:.1f} s ({p / m:.2f})" if m else "" for p, m in both]
        peak = max(row["peak_mib"].values())
        cells.append(f"{row['bound_mib']:,.0f} / {peak:,.0f} MiB")
        print(f"| {row['name']} | {row['tokens']:,} | " + " | ".join(cells) + " |")
    print()


def _print_rates(rows: list[dict[str, Any]]) -> None:
    print("| model | product, float32 / 64 | " + " | ".join(STAGES) + " | weights | factors |")
    print("|---|---|" + "---|" * (len(STAGES) + 2))
    for row in rows:
        cells = [
            f"{_rate(row, s) / 1e9:.1f} ({_share(row, s):.2f})" if row["measured"][s] else ""
            for s in STAGES
        ]
        limits = " / ".join(f"{limit / 1e9:.0f}" for limit in row["limits"])
        sizes = [f"{row[f'{part}_mib']:,.0f} MiB" for part in ("weights", "factors")]
        print(f"| {row['name']} | {limits} | " + " | ".join(cells + sizes) + " |")
    print()


def _print_hours(shares: dict[str, float], given: argparse.Namespace, row: Any) -> None:
    cores = given.cores * EFFICIENCY
    machines = {
        f"{given.cores} cores": tuple(cores * limit for limit in row["limits"]),
        "one GPU": tuple(rate * 1e12 for rate in given.tflops),
        "eight GPUs": tuple(8 * EFFICIENCY * rate * 1e12 for rate in given.tflops),
    }
    print("| model | tokens | on | " + " | ".join(STAGES) + " | in all | memory |")
    print("|---|---|---|" + "---|" * (len(STAGES) + 2))
    for shape in SHAPES[:3]:
        tokens = default_tokens(shape)
        work, memory = Work(shape, tokens), _bytes(shape) / GIB
        for machine, limits in machines.items():
            hours = [work.of(s) / (shares[s] * limits[s == SOLVING]) / 3600 for s in STAGES]
            cells = " | ".join(f"{value:,.3g} h" for value in [*hours, sum(hours)])
            print(f"| {shape.name} | {tokens:,} | {machine} | {cells} | {memory:,.0f} GiB |")


def default_tokens(shape: Shape) -> int:
    return min(MOST_TOKENS, max(FEWEST_TOKENS, TOKENS_PER_WIDTH * shape.width))


def _bytes(shape: Shape) -> int:
    """Weights and the factors of all layers in float32, and all sums in float64."""
    sums = sum(n**2 + more for n, more in shape.inputs + shape.gradients)
    numbers = sum(min(out, inner) * (out + inner) for out, inner in shape.layers)
    weights = shape.blocks * shape.block + 2 * shape.width * shape.words
    return 4 * weights + shape.blocks * (8 * sums + 4 * numbers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    measure = actions.add_parser("measure")
    measure.add_argument("model")
    measure.add_argument("--data", type=Path, required=True)
    measure.add_argument("--budget", type=float, default=0.6)
    measure.add_argument("--sequences", type=int)
    measure.add_argument("--length", type=int)
    measure.add_argument("-o", "--output", type=Path, required=True)
    table = actions.add_parser("table")
    table.add_argument("place", type=Path)
    table.add_argument("--cores", type=int, default=32)
    table.add_argument("--tflops", type=float, nargs=2, default=(67.0, 67.0))
    return parser.parse_args()


if __name__ == "__main__":
    main()
