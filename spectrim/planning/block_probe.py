"""Divergence of a model with a layer cut, from the block that holds the layer alone.

    KL ~= 1/2 E_t[ (g_t . e_t)^2 ],   e_t = block(h_t; cut) - block(h_t),
                                      g_t = -grad log p(y_t | x) at the block's output,
                                      labels y drawn from the model

The block is executed, so everything inside it (softmax, gates, interactions of positions)
counts in full; what follows is taken to second order, token by token. One forward and one
backward pass store the blocks' outputs and gradients; a layer then costs its own block instead
of all blocks from it on, so measuring every layer costs the same number of whole passes at any
depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.calibration.in_memory import frozen_eval_with_graph
from spectrim.data import TokenBlocks
from spectrim.linalg.truncated import Factors
from spectrim.models.expert_removal import ExpertRemoval
from spectrim.models.hooks import attach_hooks
from spectrim.models.targets import decoder_blocks
from spectrim.planning.probe import Probe, changed, counted_positions, replay
from spectrim.statistics import at_least_float32

OUTSIDE_TOKENS = 512
"""At most so many are run through the whole model for a layer outside of all blocks."""


@dataclass(frozen=True)
class _Rows:
    """Some sequences with every block's output and its gradient.

    `counted` (B, T - 1) marks the predictions that are measured.
    """

    ids: Tensor
    mask: Tensor | None
    counted: Tensor
    outputs: list[Any]
    gradients: list[Tensor]

    @property
    def attention(self) -> Tensor | None:
        return None if self.mask is None else self.mask.long()


class BlockProbe:
    """`divergence(factors, {layer name: rank}, removed)` to second order after their block.

    Layers of several blocks are followed from the first of these blocks to the last; a layer
    outside all blocks is measured by a `Probe`. Memory: 2 x tokens x width numbers for each
    block, and the activations of one sequence.
    """

    def __init__(self, model: nn.Module, blocks: TokenBlocks, tokens: int, seed: int = 0):
        rows = max(1, tokens // blocks.ids.shape[1])
        device = next(model.parameters()).device
        self.model = model
        self.source = blocks
        self.ids = blocks.ids[:rows].to(device)
        mask = None if blocks.mask is None else blocks.mask[:rows].to(device)
        counted = counted_positions(blocks, rows).to(device)
        self.blocks = decoder_blocks(model)
        self._rows = [
            self._record(
                _Rows(
                    self.ids[[row]],
                    None if mask is None else mask[[row]],
                    counted[[row]],
                    outputs=[],
                    gradients=[],
                ),
                seed + row,
            )
            for row in range(len(self.ids))
        ]
        self._replayable: dict[int, bool] = {0: True}
        self._tokens = max(1, int(counted.sum()))

    @torch.inference_mode()
    def divergence(
        self,
        factors: Mapping[str, Factors],
        ranks: Mapping[str, int],
        removed: Sequence[ExpertRemoval] = (),
    ) -> float:
        names = [*ranks, *(removal.experts for removal in removed)]
        numbers = [self._block_of(layer) for layer in names]
        inside = [number for number in numbers if number is not None]
        if len(inside) < len(numbers):
            return self._whole.divergence(factors, ranks, removed)
        if not inside:
            return 0.0
        first, last = min(inside), max(inside)
        start = first if self._is_replayable(first) else 0  # asked of the unchanged model
        with changed(self.model, factors, ranks, removed):
            summed = sum(self._squares(rows, start, last) for rows in self._rows)
        return 0.5 * summed / self._tokens

    @cached_property
    def _whole(self) -> Probe:
        tokens = min(OUTSIDE_TOKENS, self.ids.numel())
        return Probe(self.model, self.source, tokens)

    def _block_of(self, layer: str) -> int | None:
        for number, (name, _) in enumerate(self.blocks):
            if layer.startswith(name + "."):
                return number
        return None

    def _squares(self, rows: _Rows, first: int, last: int) -> float:
        """Return the sum over tokens of (g . e)^2 at the output of block `last`."""
        changed = self._run(rows, first, last)
        error = changed - _hidden(rows.outputs[last])
        effect = torch.linalg.vecdot(rows.gradients[last], error)
        return float(effect.double().square().sum())

    def _run(self, rows: _Rows, first: int, last: int) -> Tensor:
        """Return the output of block `last`, replaying stored outputs before `first`."""

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(_hidden(output))

        name, block = self.blocks[last]
        earlier = (module for _, module in self.blocks[:first])
        stored = zip(earlier, rows.outputs, strict=False)
        with replay(stored), attach_hooks(after=[(block, stop)]):
            try:
                self.model(input_ids=rows.ids, attention_mask=rows.attention, use_cache=False)
            except _Reached as reached:
                return reached.hidden
        raise RuntimeError(f"the model did not run its block {name}")

    def _is_replayable(self, first: int) -> bool:
        """Return whether block `first` needs only the output of the earlier ones."""
        if first not in self._replayable:
            rows = self._rows[0]
            try:
                output = self._run(rows, first, first)
                same = torch.allclose(
                    output, _hidden(rows.outputs[first]), rtol=1e-3, atol=1e-5
                )
            except (KeyError, IndexError, TypeError, AttributeError, RuntimeError):
                same = False
            self._replayable[first] = same
        return self._replayable[first]

    def _record(self, rows: _Rows, seed: int) -> _Rows:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            rows.outputs.append(output)

        blocks = [(block, keep) for _, block in self.blocks]
        with frozen_eval_with_graph(self.model, backward=True), attach_hooks(after=blocks):
            logits = self.model(
                input_ids=rows.ids, attention_mask=rows.attention, use_cache=False
            ).logits[:, :-1]
            loss = _loss_of_drawn(logits, rows.counted, seed)
            hidden = [_hidden(output) for output in rows.outputs]
            rows.gradients.extend(torch.autograd.grad(loss, hidden))
        rows.outputs[:] = [_detached(output) for output in rows.outputs]
        return rows


class _Reached(Exception):
    """Ends a forward pass at the required output."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _detached(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_detached(part) for part in output)
    return output.detach() if isinstance(output, Tensor) else output


def _loss_of_drawn(logits: Tensor, counted: Tensor, seed: int) -> Tensor:
    """Return the cross-entropy of a row's counted tokens with labels drawn from the model."""
    flat = at_least_float32(logits).flatten(0, 1)
    generator = torch.Generator(flat.device).manual_seed(seed)
    labels = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)[:, 0]
    losses = nn.functional.cross_entropy(flat, labels, reduction="none")
    return losses[counted.flatten()].sum()
