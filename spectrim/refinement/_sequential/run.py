"""Sequential objectives: walks that rewrite every factored layer, kept and continued."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.errors import NumericalWarning
from spectrim.models.targets import decoder_blocks as decoder_blocks
from spectrim.refinement._sequential.fit import TargetMix
from spectrim.refinement._sequential.state import Keeper, Layers, put_back, restore
from spectrim.refinement._sequential.task import SequentialInputs
from spectrim.refinement._sequential.walk import BlockPass

_SHOWN = 5


class SequentialPass:
    """Rewrites the factored layers of `task.compressed`; `given` is how they stood."""

    def __init__(self, task: SequentialInputs, keeper: Keeper, given: Layers):
        self.task = task
        self.keeper = keeper
        self.given = given

    @torch.no_grad()
    def walk(self, label: str, rows: Tensor, mix: TargetMix | None) -> None:
        """One pass over all layers, on the sequences `rows`; without a mix the original's
        inputs are not looked at. A walk that was stopped under this label goes on."""
        state = self.keeper.state
        if state.walk != label:
            put_back(self.task.compressed, self.given)
            state.walk, state.layers, state.errors = label, {}, {}
        for name, tensors in state.layers.items():
            restore(self.task.compressed, name, tensors)
        left = len(self.given) - len(state.layers)
        walk = BlockPass(self.task, self.given, state, rows, mix)
        for _ in self.task.progress.progress(walk.layers(), f"{self.task.name}: {label}", left):
            self.keeper.now_and_then()
        _warn_of(walk.kept, len(self.given))


def _warn_of(kept: Sequence[str], count: int) -> None:
    if kept:
        names = ", ".join(kept[:_SHOWN]) + (", ..." if len(kept) > _SHOWN else "")
        warnings.warn(
            f"too few tokens, or no loss, came through {len(kept)} of {count} layers "
            f"({names}): they keep their factors; give more sequences",
            NumericalWarning,
            stacklevel=5,
        )


def rewrite(
    task: SequentialInputs, choose: Callable[[SequentialPass], TargetMix | None]
) -> PreTrainedModel:
    """`task.compressed` with every factored layer rewritten in place; `choose` may walk
    before it gives the mix of the last walk."""
    task.check()
    with task.models_ready() as given:
        keeper = Keeper(task.progress, task.key(given))
        if keeper.finished:
            for name, tensors in keeper.state.layers.items():
                restore(task.compressed, name, tensors)
        else:
            walker = SequentialPass(task, keeper, given)
            walker.walk("last walk", torch.arange(len(task.blocks)), choose(walker))
        keeper.finish()
        task.progress.losses.update(_losses(task.compressed, keeper))
    return task.compressed


def _losses(model: PreTrainedModel, keeper: Keeper) -> dict[str, list[float]]:
    """By block, the layers' mean objective before and after; what earlier walks gave."""
    names = [name for name, _ in decoder_blocks(model)]
    by_block: dict[str, list[list[float]]] = {}
    for layer, pair in keeper.state.errors.items():
        number = next((n for n, b in enumerate(names) if layer.startswith(b + ".")), None)
        place = "outside" if number is None else f"block {number + 1} of {len(names)}"
        by_block.setdefault(place, []).append(pair)
    losses = {
        place: [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
        for place, pairs in by_block.items()
    }
    return losses | {label: [figure] for label, figure in keeper.state.figures.items()}
