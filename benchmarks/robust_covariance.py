"""Input covariances under planted outliers: plain, clipped, median and SubGM.

    python benchmarks/robust_covariance.py MODEL --data TEXT [--share 0.01] [--scale 30]

`--share` of all tokens of every layer input are replaced by noise of `--scale` times the size.
First table: relative error of one layer's covariance of `--tokens` tokens against that of the
clean inputs. Groups of `--group` tokens give one covariance each; *median* is that of every
entry over the groups, *SubGM* the l1 fit of U U^T to all of them
(`spectrim.linalg.robust_recovery`), *clipped* limits tokens to three median norms. Second
table: predicted loss of the model cut to budget 0.6 on held-out rows, nats per token, with the
covariances of all layers plain or clipped.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

import spectrim
from spectrim.calibration import CalibrationSettings, calibrate
from spectrim.calibration.in_memory import batches
from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.linalg.robust_recovery import robust_recover
from spectrim.models.capture import BatchIndex, CaptureSpec, capture
from spectrim.models.targets import Target
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.recipe import HessianAveragingRecipe, ProbeRecipe, Recipe
from spectrim.planning import make_plan
from spectrim.planning.predicted import predicted_curve
from spectrim.statistics import Calibration, LayerTokens

BATCH = 1024
CLIP = 3.0
"""Median norms."""


@dataclass(frozen=True)
class GroupCovariances:
    """Measures U U^T once for each of `count` groups, all entries (d, d)."""

    count: int
    width: int
    symmetric: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.width, self.width

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T).flatten().repeat(self.count)

    def adjoint(self, values: Tensor) -> Tensor:
        return values.view(self.count, self.width, self.width).sum(0)


def plain(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def clipped(rows: Tensor) -> Tensor:
    sizes = rows.norm(dim=1)
    return plain(rows * (CLIP * sizes.median() / sizes).clamp(max=1)[:, None])


def groups_of(rows: Tensor, size: int) -> Tensor:
    """Return the covariance of each group of `size` rows, (groups, d, d)."""
    whole = rows[: len(rows) // size * size].view(-1, size, rows.shape[1])
    return whole.mT @ whole / size


def recovered(covariances: Tensor, rank: int) -> Tensor:
    """Return the l1 fit of rank at most `rank`, from a start of size 1e-3."""
    operator = GroupCovariances(len(covariances), covariances.shape[1])
    size = covariances.median(0).values.norm()
    return size * robust_recover(operator, (covariances / size).flatten(), rank).matrix


def main() -> None:
    given = _arguments()
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    recipe = Recipe(
        budget=0.6,
        layer="lowrank",
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )
    targets = prepare(model, recipe).targets
    blocks = token_blocks(given.data, tokenizer, BlockSettings(96, 128, 0))
    fitted, held = (blocks.select(torch.arange(start, 96, 2)) for start in (0, 1))
    settings = CalibrationSettings(
        ("input_covariance", "gradient_covariance"), tokens_per_batch=BATCH
    )
    known, judge = (calibrate(model, targets, rows, settings) for rows in (fitted, held))
    clean = _inputs(model, targets, fitted, set(known.groups.values()))
    spoiled = {name: _spoiled(rows, given) for name, rows in clean.items()}
    _errors(clean, spoiled, given)

    def loss(rows: dict[str, Tensor], covariance: Callable[[Tensor], Tensor]) -> float:
        sums = {name: {"sum": known.tokens * covariance(x)} for name, x in rows.items()}
        states = known.states | {"input_covariance": sums}
        return _predicted(model, replace(known, states=states), judge, recipe)

    print("| covariances of all layers | clean | with outliers |\n|---|---|---|")
    for function in (plain, clipped):
        figures = f"{loss(clean, function):.3f} | {loss(spoiled, function):.3f}"
        print(f"| {function.__name__} | {figures} |", flush=True)


def _errors(
    clean: dict[str, Tensor], spoiled: dict[str, Tensor], given: argparse.Namespace
) -> None:
    name = min(clean, key=lambda key: clean[key].shape[1])
    pair = [rows[name][: given.tokens] for rows in (clean, spoiled)]
    truth, width = plain(pair[0]), pair[0].shape[1]
    print(f"{name}, {width} channels, {len(pair[0])} tokens")
    print("| covariance | clean | with outliers | seconds |\n|---|---|---|---|")
    of_groups = lambda function: lambda rows: function(groups_of(rows, given.group))  # noqa: E731
    methods = {
        "plain": plain,
        "clipped": clipped,
        "median of groups": of_groups(lambda c: c.median(0).values),
        f"SubGM, rank at most {width // 6}": of_groups(lambda c: recovered(c, width // 6)),
    }
    for what, method in methods.items():
        start = time.process_time()
        found = [method(rows) for rows in pair]
        errors = [(covariance - truth).norm() / truth.norm() for covariance in found]
        seconds = time.process_time() - start
        shown = " | ".join(f"{float(error):.3f}" for error in errors)
        print(f"| {what} | {shown} | {seconds / 2:.1f} |", flush=True)


def _inputs(
    model: PreTrainedModel, targets: list[Target], blocks: TokenBlocks, names: set[str]
) -> dict[str, Tensor]:
    """Return all inputs (tokens, d) float64 of the layers named."""
    found = defaultdict(list)

    def sink(name: str, tokens: LayerTokens, with_gradient: bool) -> None:
        found[name].append(tokens.x.double())

    chosen = [target for target in targets if target.name in names]
    with torch.no_grad():
        for batch in batches(blocks, BATCH, 0, torch.device("cpu")):
            index = BatchIndex.of(batch.mask, batch.first_sequence)
            with capture(model, chosen, CaptureSpec(index, sink)):
                model(input_ids=batch.ids)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _spoiled(rows: Tensor, given: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    hit = torch.rand(len(rows), generator=generator) < given.share
    noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    return torch.where(hit[:, None], given.scale * rows.square().mean().sqrt() * noise, rows)


def _predicted(
    model: PreTrainedModel, calibration: Calibration, judge: Calibration, recipe: Recipe
) -> float:
    result = decompose(model, calibration, recipe)
    total = 0.0
    for name, layer in make_plan(result, recipe.planning).layers.items():
        if layer.rank is not None:
            factors = replace(result.factors[name], solved=None)
            total += float(predicted_curve(factors, judge.layer(name))[layer.rank])
    return total


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--share", type=float, default=0.01, help="of tokens")
    parser.add_argument("--scale", type=float, default=30.0, help="of the noise")
    parser.add_argument("--group", type=int, default=30, help="tokens of a group")
    parser.add_argument("--tokens", type=int, default=1200, help="of the first table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
