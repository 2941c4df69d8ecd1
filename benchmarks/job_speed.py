"""Calibration and decomposition against the plain way: processor time and memory.

    python benchmarks/job_speed.py [MODEL] [--width 1024 --blocks 2 --tokens 8192]

Plain, as published code does it: forward and backward of the whole model as in training, weight
gradients included; in hooks one float32 product x^T x and one g^T g for every layer; then for
each layer two Cholesky factors in float64, `torch.linalg.svd` of the whitened weight, and an
inverse of either factor (`--svd32`: the SVD in float32). Both arms end in factors of the same
ranks. Random weights in the shapes of Llama unless a model is given; each arm runs in a process
of its own on one thread. `ours` keeps its statistics in a file between the two steps, as the
commands do in their workspace. `streamed` reads shards and has no model in memory: its peak is
of all that it holds. The last lines say how far the arms' results are from each other, and
what a large matrix product reaches on this machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from llama_shape import llama_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.blockwise import BlockwiseWalk, Places
from spectrim.checkpoint.validation import weight_files
from spectrim.data import TokenBlocks
from spectrim.models.offload import Activations, StreamedModel
from spectrim.models.targets import Target, find_targets
from spectrim.pipeline.plan import decompose
from spectrim.pipeline.recipe import Recipe
from spectrim.planning.lazy_decomposition import LayerFiles
from spectrim.runtime.memory import peak_bytes, resident_bytes, return_large_blocks, trim_memory
from spectrim.statistics import STATISTICS, Calibration, save_calibration, stored_calibration

MIB = 2**20
DAMPING = 1e-3
KEPT = 0.6
"""Of a layer's weights, as factors of the rank that both arms end with."""


STATISTICS_OF_OBD = ("input_covariance", "gradient_covariance")
Ranked = dict[str, tuple[Tensor, Tensor]]


def main() -> None:
    given = _arguments()
    torch.set_num_threads(1)
    if given.arm:
        print(json.dumps(ARMS[given.arm](given)))
        return
    with tempfile.TemporaryDirectory() as directory:
        found: dict[str, dict[str, Any]] = {}
        for arm in given.arms.split(",") * given.repeat:
            for place in ("activations", "statistics", "factors"):
                _remove(Path(directory) / place)
            row = _in_a_process(arm, directory)
            found[arm] = min(row, found.get(arm, row), key=_both)
        first, *others = (torch.load(Path(directory) / f"{arm}.pt") for arm in found)
    print("| arm | calibration | decomposition | both | of it | peak beyond the model |")
    print("|---|---|---|---|---|---|")
    for arm, row in found.items():
        both = _both(row)
        parts = ", ".join(f"{name} {value:.1f}" for name, value in row["parts"].items())
        print(
            f"| {arm} | {row['calibration']:.1f} s | {row['decomposition']:.1f} s "
            f"| {both:.1f} s | {parts} | {row['beyond_mib']:.0f} MiB |"
        )
    for other in others:
        print("largest relative difference of a weight:", _apart(first, other))
    print(
        "GFLOP/s of a product, float32, float64:", *map(_rate, (torch.float32, torch.float64))
    )


def _remove(path: Path) -> None:
    """What an earlier run of `streamed` would go on from."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _both(row: dict[str, Any]) -> float:
    return row["calibration"] + row["decomposition"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1024, help="tokens, of all arms")
    parser.add_argument("--svd32", action="store_true")
    parser.add_argument("--repeat", type=int, default=1, help="the least time of so many")
    parser.add_argument("--arms", default="plain,ours,streamed")
    parser.add_argument("--arm")
    parser.add_argument("--directory", type=Path)
    return parser.parse_args()


def _in_a_process(arm: str, directory: str) -> dict[str, Any]:
    options = [*sys.argv[1:], "--arm", arm, "--directory", directory]
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _model(given: argparse.Namespace) -> Any:
    if given.model:
        return AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    torch.manual_seed(0)
    changes = {"vocab_size": given.vocabulary, "tie_word_embeddings": False}
    config = llama_config(given.width, given.blocks, **changes)
    return AutoModelForCausalLM.from_config(config).eval()


def _tokens(given: argparse.Namespace, model: Any) -> TokenBlocks:
    generator = torch.Generator().manual_seed(1)
    size = given.tokens // given.length, given.length
    ids = torch.randint(model.config.vocab_size, size, generator=generator)
    return TokenBlocks(ids, None, "", "random", 1)


def _rank(target: Target) -> int:
    out, inner = target.shape
    return int(KEPT * out * inner / (out + inner))


def plain(given: argparse.Namespace) -> dict[str, Any]:
    model = _model(given)
    targets, blocks = find_targets(model), _tokens(given, model)
    meter = Meter()
    rows = blocks.ids.split(max(1, given.batch // given.length))
    inputs, gradients = _plain_sums(model, targets, rows)
    meter.next("calibration")
    result: Ranked = {}
    for target in targets:
        weight = model.get_submodule(target.name).weight.detach().double()
        covariances = gradients.pop(target.name), inputs.pop(target.name)
        roots = [_root(sums.double() / blocks.ids.numel()) for sums in covariances]
        result[target.name] = _plain_factors(weight, *roots, _rank(target), given.svd32)
    meter.next("decomposition")
    return meter.finished(given, result)


def _plain_sums(
    model: nn.Module, targets: list[Target], batches: Sequence[Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def add(sums: dict[str, Tensor], name: str, rows: Tensor) -> None:
        rows = rows.detach().flatten(0, -2)
        sums[name] = sums.get(name, 0) + rows.T @ rows

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
            add(inputs, name, given[0])
            output.register_hook(lambda g: add(gradients, name, g))

        return hook

    for target in targets:
        model.get_submodule(target.name).register_forward_hook(watch(target.name))
    for rows in batches:
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
        labels = rows[:, 1:].flatten()
        nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum").backward()
    model.zero_grad()
    return inputs, gradients


def _root(covariance: Tensor) -> Tensor:
    covariance.diagonal().add_(DAMPING * covariance.diagonal().mean())
    return torch.linalg.cholesky(covariance)


def _plain_factors(
    weight: Tensor, outer: Tensor, inner: Tensor, rank: int, svd32: bool
) -> tuple[Tensor, Tensor]:
    whitened = outer.T @ weight @ inner
    left, values, right = torch.linalg.svd(
        whitened.float() if svd32 else whitened, full_matrices=False
    )
    scale = values[:rank].double().sqrt()
    left = torch.linalg.inv(outer).T @ (left[:, :rank].double() * scale)
    right = (scale[:, None] * right[:rank].double()) @ torch.linalg.inv(inner)
    return left.float(), right.float()


def ours(given: argparse.Namespace) -> dict[str, Any]:
    model = _model(given)
    targets, blocks = find_targets(model), _tokens(given, model)
    meter = Meter()
    calibration = _kept(calibrate(model, targets, blocks, _settings(given)), given)
    meter.next("calibration")
    found = decompose(model, calibration, Recipe())
    result = {t.name: _cut(found.factors[t.name].truncated(_rank(t))) for t in targets}
    meter.next("decomposition")
    return meter.finished(given, result)


def _kept(calibration: Calibration, given: argparse.Namespace) -> Calibration:
    """In a file, out of which a layer's statistics are read when it is decomposed."""
    path = given.directory / "calibration.safetensors"
    save_calibration(calibration, path)
    return stored_calibration([path], calibration.provenance)


def streamed(given: argparse.Namespace) -> dict[str, Any]:
    """From shards, with statistics, block inputs and factors in files."""
    return_large_blocks()
    folder = Path(given.model or given.directory / "model")
    if not given.model:
        _model(given).save_pretrained(folder, max_shard_size="40MB")
    trim_memory()
    config = AutoConfig.from_pretrained(folder)
    model = StreamedModel(config, weight_files(folder), torch.float32)
    targets, blocks = find_targets(model.model), _tokens(given, model.model)
    places = Places(
        Activations(given.directory / "activations", 0), given.directory / "statistics", 1
    )
    meter = Meter()
    walk = BlockwiseWalk(model, targets, blocks, _settings(given), places)
    for _ in walk.steps():
        trim_memory()
    calibration = walk.result()
    meter.next("calibration")
    files = LayerFiles(given.directory / "factors", lambda name: trim_memory())
    found = decompose(model, calibration, Recipe(), files)
    meter.next("decomposition")
    result = {t.name: _cut(found.factors[t.name].truncated(_rank(t))) for t in targets}
    return meter.finished(given, result)


def _settings(given: argparse.Namespace) -> CalibrationSettings:
    return CalibrationSettings(
        STATISTICS_OF_OBD, tokens_per_batch=given.batch, wide=Recipe().wide
    )


def _cut(factors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return factors[0].float(), factors[1].float()


ARMS = {"plain": plain, "ours": ours, "streamed": streamed}


class Meter:
    """Processor time of each stage and of its parts, memory beyond what is there now."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        for name in STATISTICS_OF_OBD:
            module = STATISTICS.get(name)
            module.update = self._timed("sums", module.update)
        torch.linalg.eigh = self._timed("eigenvectors", torch.linalg.eigh)
        torch.linalg.svd = self._timed("svd", torch.linalg.svd)
        Path("/proc/self/clear_refs").write_text("5")
        self.base, self._since = resident_bytes(), time.process_time()

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            start = time.process_time()
            result = function(*args, **named)
            self.parts[part] = self.parts.get(part, 0.0) + time.process_time() - start
            return result

        return run

    def next(self, stage: str) -> None:
        now = time.process_time()
        self.stages[stage], self._since = now - self._since, now

    def finished(self, given: argparse.Namespace, result: Ranked) -> dict[str, Any]:
        beyond = (peak_bytes() - self.base) / MIB
        torch.save(result, given.directory / f"{given.arm}.pt")
        return self.stages | {"parts": self.parts, "beyond_mib": beyond}


def _apart(first: Ranked, other: Ranked) -> float:
    """|| A - B || / || A || of the products of the factors."""
    pairs = [(first[name], other[name]) for name in first]
    products = [(a[0] @ a[1], b[0] @ b[1]) for a, b in pairs]
    return max(float((a - b).norm() / a.norm()) for a, b in products)


def _rate(dtype: torch.dtype, size: int = 1024) -> int:
    matrix = torch.randn(size, size, dtype=dtype)
    matrix @ matrix
    start = time.process_time()
    for _ in range(5):
        matrix @ matrix
    return round(5 * 2 * size**3 / (time.process_time() - start) / 1e9)


if __name__ == "__main__":
    main()
