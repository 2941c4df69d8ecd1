"""Tell other domains from the calibration's by the compression error: AUROC and correlation.

    python benchmarks/domain_detection.py MODEL --data TEXT --inside HELD_OUT \\
        --outside NAME=TEXT ... [--budget 0.6]

Compresses MODEL on TEXT (`--sequences` rows; loss-optimal ranks, plain factors, no probing) and
scores rows of held-out text of the same kind and of each other text:

    error          sum over layers of the compression error, against its calibration mean
    drift          the hidden state outside of 99% of its calibration energy, of its own energy
    loss           the original model's own loss on the row, which needs no compression

Columns: AUROC of the other text's rows against held-out rows, the mean score by the error, and
the rank correlation of the error with the measured loss increase over all rows of both.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

import spectrim
from spectrim.calibration.in_memory import batches
from spectrim.data import BlockSettings, TokenBlocks, token_blocks
from spectrim.linalg.grassmann import principal_subspace, projection_residual
from spectrim.linalg.ranking import auroc, rank_correlation
from spectrim.models.hooks import inference
from spectrim.pipeline.compression_error import (
    TOKENS_PER_BATCH,
    compression_errors,
    own_calibration,
)
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
)
from spectrim.pipeline.replace import replace_layers
from spectrim.planning import make_plan
from spectrim.statistics import Calibration

ENERGY = 0.99


@dataclass(frozen=True)
class Detector:
    original: PreTrainedModel
    compressed: PreTrainedModel
    calibration: Calibration
    layer: str
    basis: Tensor

    def scores(self, blocks: TokenBlocks) -> dict[str, Tensor]:
        """Return by name the scores (rows,), and the loss increase."""
        errors = compression_errors(
            self.original, self.compressed, self.calibration, blocks
        ).documents
        residual, loss = self._residual_and_loss(blocks)
        return {
            "error": torch.tensor([document.score for document in errors]),
            "drift": residual,
            "loss": loss,
            "increase": torch.tensor([document.loss_increase for document in errors]),
        }

    def _residual_and_loss(self, blocks: TokenBlocks) -> tuple[Tensor, Tensor]:
        residuals, losses = [], []
        held: list[Tensor] = []
        module = self.original.get_submodule(self.layer)
        hook = module.register_forward_pre_hook(lambda m, inputs: held.append(inputs[0]))
        with inference(self.original):
            for batch in batches(blocks, TOKENS_PER_BATCH, 0, self.original.device):
                logits = self.original(input_ids=batch.ids, use_cache=False).logits
                x = held.pop().double()
                outside = projection_residual(x.flatten(0, 1), self.basis).view(x.shape[:2])
                residuals.append((outside / x.square().sum(-1)).mean(1))
                log_p = logits[:, :-1].log_softmax(-1).gather(2, batch.ids[:, 1:, None])
                losses.append(-log_p[..., 0].mean(1).double())
        hook.remove()
        return torch.cat(residuals), torch.cat(losses)


def main() -> None:
    given = _arguments()
    model, tokenizer = spectrim.load(given.model, dtype=torch.float32)
    recipe = Recipe(
        budget=given.budget,
        layer="lowrank",
        calibration=CalibrationRecipe(given.data, None, given.sequences, given.length),
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )
    calibration = own_calibration(model, tokenizer, recipe)
    decomposition = decompose(model, calibration, recipe)
    smaller = replace_layers(
        model, decomposition, make_plan(decomposition, recipe.planning)
    ).float()
    middle = list(calibration.groups)[len(calibration.groups) // 2]
    basis, _ = principal_subspace(calibration.layer(middle)["input_covariance"], ENERGY)
    detector = Detector(model, smaller, calibration, middle, basis)
    rows = BlockSettings(given.rows, given.length, 0)
    inside = detector.scores(token_blocks(given.inside, tokenizer, rows))
    print("| text | error | drift | loss | mean score | correlation with the loss increase |")
    print("|---|---|---|---|---|---|")
    print(f"| held out | | | | {_line(inside, inside)} |")
    for each in given.outside:
        name, _, text = each.partition("=")
        other = detector.scores(token_blocks(text, tokenizer, rows))
        areas = [f"{auroc(inside[k], other[k]):.3f}" for k in ("error", "drift", "loss")]
        print(f"| {name} | {' | '.join(areas)} | {_line(other, inside)} |", flush=True)


def _line(scores: dict[str, Tensor], inside: dict[str, Tensor]) -> str:
    both = (
        scores if scores is inside else {k: torch.cat([inside[k], scores[k]]) for k in scores}
    )
    found = rank_correlation(both["error"], both["increase"])
    return f"{float(scores['error'].mean()):.2f} | {'' if found is None else f'{found:.2f}'}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--inside", required=True, help="held-out text of the same kind")
    parser.add_argument("--outside", nargs="+", required=True, help="NAME=TEXT of others")
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--sequences", type=int, default=192)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=60)
    return parser.parse_args()


if __name__ == "__main__":
    main()
