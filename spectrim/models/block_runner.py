"""Run a model in three pieces: up to its blocks, one block at a time, and after them.

The arguments of a block besides the hidden state (masks, rotary tables, kinds of attention that
differ between blocks) are recorded by running the model once around blocks that return their
input, so no code here depends on how a model prepares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.errors import ModelError
from spectrim.models.hooks import override_forward
from spectrim.models.offload.model import StreamedModel


@dataclass(frozen=True)
class BlockCall:
    """The arguments of a block besides the hidden state.

    That is its first argument or, if all are named, the one called `name`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str | None

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
        if args:
            return args[0], cls(args[1:], kwargs, None)
        name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
        rest = {key: value for key, value in kwargs.items() if key != name}
        return kwargs[name], cls((), rest, name)

    def on(self, block: nn.Module, hidden: Tensor) -> Any:
        if self.name is None:
            return block(hidden, *self.args, **self.kwargs)
        return block(**{self.name: hidden}, **self.kwargs)


@dataclass
class StreamedBlockRunner:
    """The three pieces for a streamed model. Raises ModelError for one that computes anything
    between its blocks."""

    streamed: StreamedModel
    _rest: tuple[Any, ...] | None = None
    _interned: dict[Any, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def learn(self, ids: Tensor, mask: Tensor) -> None:
        """Find out whether a block returns a tensor or a tuple beginning with it."""
        with self.streamed.outside_when_used():
            hidden, calls = self._recorded(ids, mask, 1)
        with self.streamed.resident(self.streamed.blocks[0]) as block:
            output = calls[0].on(block, hidden)
        self._rest = output[1:] if isinstance(output, tuple) else None

    @torch.no_grad()
    def before(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[BlockCall]]:
        """Return the first block's hidden state (rows, length, width) and every block's call.

        The modules outside the blocks have to be resident or loaded on use.
        """
        return self._recorded(ids, mask, len(self.streamed.blocks))

    def through(self, block: nn.Module, hidden: Tensor, call: BlockCall) -> Tensor:
        output = call.on(block, hidden)
        return output[0] if isinstance(output, tuple) else output

    def after(self, ids: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """Return the logits for the output `hidden` of the last block."""
        model: Any = self.streamed.model
        embedding = model.get_input_embeddings()
        with ExitStack() as stack:
            stack.enter_context(override_forward(embedding, lambda *_: hidden.detach()))
            self._override(stack, self.streamed.blocks, lambda *_, **__: self._returned(hidden))
            return _run(model, ids, mask)

    @property
    def embedding(self) -> str:
        model: Any = self.streamed.model
        table = model.get_input_embeddings()
        return next(name for name, module in model.named_modules() if module is table)

    def _recorded(
        self, ids: Tensor, mask: Tensor, count: int
    ) -> tuple[Tensor, list[BlockCall]]:
        names = self.streamed.blocks[:count]
        found: list[tuple[Tensor, BlockCall]] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            hidden, call = BlockCall.of(args, kwargs)
            if found and hidden is not found[0][0]:
                raise ModelError(
                    "the model changes hidden states between its blocks, so it cannot be "
                    "streamed; compress it with the whole model in memory"
                )
            found.append((hidden, self._kept(call)))
            if len(found) == count:
                raise _Enough
            return self._returned(hidden)

        with ExitStack() as stack, suppress(_Enough):
            self._override(stack, names, record)
            _run(self.streamed.model, ids, mask)
        if len(found) == count:
            return found[0][0], [call for _, call in found]
        raise ModelError("the model did not run all of its blocks, so it cannot be streamed")

    def _override(
        self, stack: ExitStack, names: Iterable[str], forward: Callable[..., Any]
    ) -> None:
        for name in names:
            module = self.streamed.model.get_submodule(name)
            stack.enter_context(override_forward(module, forward))

    def _returned(self, hidden: Tensor) -> Any:
        return hidden if self._rest is None else (hidden, *self._rest)

    def _kept(self, call: BlockCall) -> BlockCall:
        """Share one copy of equal tensors: most batches have the same masks and tables."""
        return BlockCall(self._intern(call.args), self._intern(call.kwargs), call.name)

    def _intern(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            content = value.detach().contiguous().flatten().view(torch.uint8)
            key = (tuple(value.shape), value.dtype, hash(content.numpy().tobytes()))
            known = self._interned.setdefault(key, value)
            return known if torch.equal(known, value) else value
        if isinstance(value, tuple | list):
            return type(value)(self._intern(item) for item in value)
        if isinstance(value, dict):
            return {key: self._intern(item) for key, item in value.items()}
        return value


class _Enough(Exception):
    """All blocks' calls were seen."""


def rows_of(count: int, most: int) -> Sequence[slice]:
    """Return slices of at most `most` rows that cover `count` rows."""
    return [slice(first, first + most) for first in range(0, count, most)]


def _run(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    attention = None if bool(mask.all()) else mask.long()
    return model(input_ids=ids, attention_mask=attention, use_cache=False).logits
