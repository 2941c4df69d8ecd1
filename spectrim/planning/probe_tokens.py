"""The number of tokens to measure curves on, as a share of the cost of calibration.

A pass is the products with the weights of all blocks and of the output embedding, for one
token. Calibrating N tokens takes 2 N passes (forward and backward), and measuring

    joint       (1 + plans) T                                  the original and every plan
    model       T + sum over measurements of T (rest)          from the layer's block on
    block       2 T + sum over layers of T (one block)         forward, backward, own block

The budget share * 2 N is split between full-model plans and layers, and T follows. Layers are
run through the rest of the model if that leaves them `ENOUGH` tokens, else through their own
block (`BlockProbe`), which takes the same number of passes at any depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from torch import Tensor, nn

from spectrim.calibration.in_memory import Rows
from spectrim.data import TokenBlocks
from spectrim.data.labeled import LabeledRows
from spectrim.models.targets import decoder_blocks, find_targets

Through = Literal["model", "block"]

ENOUGH = 512
"""Tokens from which the whole model tells a layer's loss better than its own block does."""
MOST_LAYER_TOKENS = 2048
MOST_JOINT_TOKENS = 16384
JOINT_SHARE = 0.2
SMALLEST_ROOM = 256 * 2**20
"""Bytes for the original's probabilities that even the smallest model may use."""


@dataclass(frozen=True)
class PassCosts:
    """Parts of a whole pass: of each block, by name and in order, and of what comes after."""

    blocks: dict[str, float]
    head: float

    @classmethod
    def of(cls, model: nn.Module) -> PassCosts:
        sizes = {name: 0 for name, _ in decoder_blocks(model)}
        for target in find_targets(model):
            for name in sizes:
                if target.name.startswith(name + "."):
                    sizes[name] += target.weights
        head = _head_weights(model)
        total = max(1, sum(sizes.values()) + head)
        return cls({name: size / total for name, size in sizes.items()}, head / total)

    def rest(self, modules: Iterable[str]) -> float:
        """Return the cost from the first block that holds one of the modules to the end."""
        held = self._held(modules)
        if held is None:
            return 1.0
        return sum(list(self.blocks.values())[held[0] :]) + self.head

    def own(self, modules: Iterable[str]) -> float:
        """Return the cost of the modules' blocks, or of all if one is outside blocks."""
        held = self._held(modules)
        if held is None:
            return 1.0
        return sum(list(self.blocks.values())[held[0] : held[-1] + 1])

    def passes(self, measurements: Mapping[tuple[str, ...], int], through: Through) -> float:
        """Return the passes that one token takes through all measurements of layers."""
        if through == "model":
            return 1 + sum(n * self.rest(modules) for modules, n in measurements.items())
        return 2 + sum(map(self.own, measurements))

    def _held(self, modules: Iterable[str]) -> list[int] | None:
        names = list(self.blocks)
        numbers = [
            next((i for i, name in enumerate(names) if m.startswith(name + ".")), None)
            for m in modules
        ]
        inside = sorted(number for number in numbers if number is not None)
        return inside if inside and len(inside) == len(numbers) else None


@dataclass(frozen=True)
class ProbeTokens:
    """Tokens for each layer, how they are run, and tokens for full-model plans."""

    layers: int
    through: Through
    joint: int

    @classmethod
    def within(
        cls,
        budget: float,
        costs: PassCosts,
        measurements: Mapping[tuple[str, ...], int],
        plans: int,
        through: Through | Literal["auto"] = "auto",
    ) -> ProbeTokens:
        """Split a budget between layers and full-model plans.

        Args:
            budget: passes of one token in total.
            costs: of the blocks.
            measurements: number of ranks by the modules that are cut together; if empty, the
                plans get the whole budget.
            plans: number of plans; if 0, the layers get the whole budget.
            through: how layers are run.
        """
        share = (JOINT_SHARE if measurements else 1.0) if plans else 0.0
        joint = min(MOST_JOINT_TOKENS, int(share * budget / (1 + plans)))
        rest = budget - joint * (1 + plans) if plans else budget
        if through == "auto":
            model = costs.passes(measurements, "model")
            through = "model" if int(rest / model) >= ENOUGH else "block"
        if not costs.blocks:
            through = "model"
        passes = costs.passes(measurements, through)
        return cls(max(2, min(MOST_LAYER_TOKENS, int(rest / passes))), through, max(2, joint))

    def at_most(self, held: int) -> ProbeTokens:
        """Limit the tokens with probabilities of the whole vocabulary to `held`."""
        layers = min(self.layers, held) if self.through == "model" else self.layers
        return replace(self, layers=layers, joint=min(self.joint, held))


def held_probabilities(model: nn.Module) -> int:
    """Return the tokens whose probabilities take at most half of the model's own bytes."""
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    return most_probabilities(own, vocabulary_size(model))


def most_probabilities(model_bytes: int, vocabulary: int) -> int:
    """Return `held_probabilities` of a model of `model_bytes`."""
    return max(2, max(model_bytes // 2, SMALLEST_ROOM) // (4 * max(1, vocabulary)))


@overload
def first_tokens(blocks: TokenBlocks, tokens: int) -> TokenBlocks: ...
@overload
def first_tokens(blocks: Rows, tokens: int) -> Rows: ...
def first_tokens(blocks: Rows, tokens: int) -> Rows:
    """Return as many rows, evenly cut, as hold about `tokens` tokens, at least one of two.

    Examples with labels are not cut.
    """
    if isinstance(blocks, LabeledRows):
        return blocks.first_tokens(tokens)
    count, length = blocks.ids.shape
    rows = min(count, max(1, -(-tokens // length)))
    width = max(2, min(length, tokens // rows))
    part = blocks.select(torch.arange(rows))
    ids, mask, scored = (
        None if marks is None else marks[:, :width].contiguous()
        for marks in (part.ids, part.mask, part.scored)
    )
    assert ids is not None
    return replace(part, ids=ids, mask=mask, scored=scored)


def _head_weights(model: nn.Module) -> int:
    weight = _head(model)
    return 0 if weight is None else weight.numel()


def vocabulary_size(model: nn.Module) -> int:
    """Return the rows of the output embedding, 1 for a model that names none."""
    weight = _head(model)
    return 1 if weight is None else weight.shape[0]


def _head(model: nn.Module) -> Tensor | None:
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return getattr(output, "weight", None)
