"""Sequential objectives: passes that rewrite every factored layer, resumed after a stop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.errors import NumericalWarning
from spectrim.models.targets import decoder_blocks as decoder_blocks
from spectrim.refinement._sequential.fit import TargetMix
from spectrim.refinement._sequential.inputs import Layers, SequentialInputs, put_back
from spectrim.refinement._sequential.walk import BlockPass, PassState
from spectrim.runtime.cache import load_if_valid, store
from spectrim.runtime.snapshots import Snapshots
from spectrim.training.inputs import Losses

_SHOWN = 5
_LAST = "last walk"


class SequentialPass:
    """Rewrites the factored layers of `task.compressed`; `layers` is how they stood."""

    def __init__(
        self, task: SequentialInputs, layers: Layers, state: PassState, snapshots: Snapshots
    ):
        self.task = task
        self.layers = layers
        self.state = state
        self.snapshots = snapshots

    @torch.no_grad()
    def walk(self, label: str, rows: Tensor, mix: TargetMix | None) -> None:
        """Rewrite all layers once, on the sequences `rows`.

        Without a mix the original's inputs are not looked at. A pass that was stopped under
        this label is resumed.
        """
        state = self.state
        if state.label != label:
            put_back(self.task.compressed, self.layers)
            state.label, state.layers, state.errors = label, {}, {}
        state.restore(self.task.compressed)
        left = len(self.layers) - len(state.layers)
        walk = BlockPass(self.task, self.layers, state, rows, mix)
        description = f"{self.task.name}: {label}"
        for _ in self.task.context.progress(walk.rewrite(), description, left):
            if self.snapshots.due():
                self.snapshots.save("state", state.save)
        _warn_of(walk.unchanged, len(self.layers))


def _warn_of(unchanged: Sequence[str], count: int) -> None:
    if unchanged:
        names = ", ".join(unchanged[:_SHOWN]) + (", ..." if len(unchanged) > _SHOWN else "")
        warnings.warn(
            f"too few tokens, or only zero gradients, reached {len(unchanged)} of {count} "
            f"layers ({names}): they keep their factors; give more sequences",
            NumericalWarning,
            stacklevel=5,
        )


def rewrite(
    task: SequentialInputs, choose: Callable[[SequentialPass], TargetMix | None]
) -> Losses:
    """Rewrite every factored layer of `task.compressed`, and return the errors by block.

    `choose` may walk before it returns the mix of the last pass.
    """
    task.check()
    with task.evaluating() as layers:
        entry = task.context.cache.path("refinement", task.key(layers))
        snapshots = Snapshots(entry, shared=True)
        if (state := load_if_valid(entry, PassState.load)) is not None:
            state.restore(task.compressed)
        else:
            state = snapshots.load("state", PassState.load) or PassState()
            walker = SequentialPass(task, layers, state, snapshots)
            walker.walk(_LAST, torch.arange(len(task.inputs.blocks)), choose(walker))
            store(entry, state.save)
        snapshots.finish()
        return _losses(task.compressed, state)


def _losses(model: PreTrainedModel, state: PassState) -> Losses:
    """Return the layers' mean objective before and after, by block, and earlier figures."""
    names = [name for name, _ in decoder_blocks(model)]
    by_block: dict[str, list[list[float]]] = {}
    for layer, pair in state.errors.items():
        number = next((n for n, b in enumerate(names) if layer.startswith(b + ".")), None)
        place = "outside" if number is None else f"block {number + 1} of {len(names)}"
        by_block.setdefault(place, []).append(pair)
    losses = {
        place: [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
        for place, pairs in by_block.items()
    }
    return losses | {label: [figure] for label, figure in state.figures.items()}
