"""Running models on some of the training sequences: whole, or one decoder block of them.

A block is run by its own model, which computes the arguments it passes to its blocks
(position embeddings, masks); the hidden state is put in their place as the block's first
positional input. Blocks before it pass their input on without computing, blocks after it
are not reached.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.data import TokenBlocks
from spectrim.errors import ModelError
from spectrim.models.hooks import attach_hooks, evaluation_mode, override_forward
from spectrim.models.linear import agree
from spectrim.models.targets import decoder_blocks

Precision = Literal["float32", "bfloat16"]


class Tokens:
    """The sequences on a device; rows are given as indices (B,). Parameters are in float32;
    `precision` is that of the matrix products."""

    def __init__(self, blocks: TokenBlocks, device: torch.device, precision: Precision):
        self.ids = blocks.ids
        self.mask = blocks.mask
        self.device = device
        self.precision = getattr(torch, precision)

    def __len__(self) -> int:
        return len(self.ids)

    def real(self, rows: Tensor) -> Tensor:
        """(B, T) bool, False on padding."""
        if self.mask is None:
            return torch.ones_like(self.ids[rows], dtype=torch.bool, device=self.device)
        return self.mask[rows].to(self.device)

    def run(self, model: PreTrainedModel, rows: Tensor) -> Any:
        real = self.real(rows)
        attention = None if bool(real.all()) else real.long()
        ids = self.ids[rows].to(self.device)
        lower = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=lower):
            return model(input_ids=ids, attention_mask=attention, use_cache=False)

    def predicted(self, model: PreTrainedModel, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, T, V) and the output (B, T, d) of every decoder block."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.append(_hidden(output if isinstance(output, tuple) else (output,), module))

        with attach_hooks(after=[(block, keep) for _, block in decoder_blocks(model)]):
            return self.run(model, rows).logits, found


class BlockRunner:
    """Runs single decoder blocks of a model. Raises ModelError for a model without them, and
    for one whose blocks hand on more than one hidden state."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens):
        self.model = model
        self.tokens = tokens
        self.blocks = decoder_blocks(model)
        if not self.blocks:
            raise ModelError(
                f"{type(model).__name__} names no decoder blocks to refine one by one; "
                "use the refinement distillation"
            )
        self._tuples: dict[int, int] = {}
        self._check()

    def first_input(self, rows: Tensor) -> Tensor:
        """(B, T, d): what the first block is given."""
        _, first = self.blocks[0]

        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Reached(_hidden(args, module))

        with attach_hooks(before=[(first, stop)]):
            return self._run(rows)

    def output(self, number: int, hidden: Tensor, rows: Tensor) -> Tensor:
        """(B, T, d): what block `number` makes of `hidden` (B, T, d)."""
        _, block = self.blocks[number]

        def put(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            _hidden(args, module)
            return (hidden, *args[1:])

        def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, tuple):
                self._tuples[number] = len(output)
            raise _Reached(_hidden(output if isinstance(output, tuple) else (output,), module))

        with ExitStack() as stack:
            stack.enter_context(attach_hooks(before=[(block, put)], after=[(block, stop)]))
            for earlier, (_, module) in enumerate(self.blocks[:number]):
                forward = _identity(self._tuples.get(earlier))
                stack.enter_context(override_forward(module, forward))
            return self._run(rows)

    @torch.no_grad()
    def _check(self) -> None:
        """Raise ModelError unless the last block alone gives what it does in the model."""
        row, last = torch.tensor([0]), len(self.blocks) - 1
        with evaluation_mode(self.model):
            inputs, outputs = self._recorded(row)
            if len(outputs) == len(self.blocks) and inputs[last].dim() == 3:
                self._tuples |= {n: len(o) for n, o in enumerate(outputs) if type(o) is tuple}
                expected = outputs[last][0] if last in self._tuples else outputs[last]
                with suppress(KeyError, IndexError, TypeError, RuntimeError):
                    if agree(self.output(last, inputs[last], row), expected):
                        return
        raise ModelError(
            f"the blocks of {type(self.model).__name__} hand on more than one hidden state, so "
            "they cannot be refined one by one; use the refinement distillation"
        )

    def _recorded(self, row: Tensor) -> tuple[list[Tensor], list[Any]]:
        """Return each block's input and output when the model reads `row`."""
        inputs: list[Tensor] = []
        outputs: list[Any] = []

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.append(_hidden(args, module).clone())

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            outputs.append(output)

        blocks = [block for _, block in self.blocks]
        with attach_hooks([(b, before) for b in blocks], [(b, after) for b in blocks]):
            self.tokens.run(self.model, row)
        return inputs, outputs

    def _run(self, rows: Tensor) -> Tensor:
        try:
            self.tokens.run(self.model, rows)
        except _Reached as reached:
            return reached.hidden
        raise ModelError(
            f"{type(self.model).__name__} did not run its decoder blocks in order; "
            "use the refinement distillation"
        )


class _Reached(Exception):
    """Ends a forward pass where its result is known."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden


def _hidden(values: tuple[Any, ...], module: nn.Module) -> Tensor:
    if values and isinstance(values[0], Tensor):
        return values[0]
    raise ModelError(
        f"a {type(module).__name__} does not take and give its hidden state as first "
        "positional value; use the refinement distillation"
    )


def _identity(length: int | None) -> Callable[..., Any]:
    """Return a forward pass that returns its input, alone or as first of `length` values."""

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden if length is None else (hidden, *[None] * (length - 1))

    return forward
