"""Divergence of a model with some weights exchanged from the model itself, on a few tokens.

    KL = E_t[ sum_v p(v) (log p(v) - log q(v)) ],   p the original, q the changed model

Nats per token. The expected loss increase under the model's own predictions: far less
noisy than a difference of two losses on the same tokens. Blocks before the first changed
one are not run again: their outputs are kept (tokens x width each).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.data import TokenBlocks
from spectrim.surgery.adapters import set_weight, weight_of
from spectrim.surgery.targets import blocks as decoder_blocks


class Probe:
    """`divergence({layer name: weight (out, in)})` on the first `tokens` tokens of `blocks`.

    Memory: tokens x vocabulary x 4 bytes for the original's probabilities.
    """

    def __init__(self, model: nn.Module, blocks: TokenBlocks, tokens: int):
        rows = max(1, tokens // blocks.ids.shape[1])
        device = next(model.parameters()).device
        self.model = model
        self.ids = blocks.ids[:rows].to(device)
        self.mask = None if blocks.mask is None else blocks.mask[:rows].to(device)
        self.blocks = decoder_blocks(model)
        self.outputs: dict[str, Any] = {}
        with self._recorded():
            logits = self._logits()
        self.probabilities = logits.softmax(-1)
        self.negative_entropy = torch.linalg.vecdot(self.probabilities, logits.log_softmax(-1))

    @torch.inference_mode()
    def divergence(self, weights: Mapping[str, Tensor]) -> float:
        first = self._first_changed(weights)
        with ExitStack() as stack:
            for name, weight in weights.items():
                stack.enter_context(exchanged(self.model.get_submodule(name), weight))
            for name, block in self.blocks[:first]:
                stack.enter_context(_answering(block, self.outputs[name]))
            changed = self._logits()
        cross = changed.logsumexp(-1) - torch.linalg.vecdot(self.probabilities, changed)
        per_token = self.negative_entropy + cross
        if self.mask is not None:
            per_token = per_token[self.mask[:, :-1]]
        return float(per_token.double().mean())

    def _first_changed(self, weights: Mapping[str, Tensor]) -> int:
        for number, (name, _) in enumerate(self.blocks):
            if any(layer.startswith(name + ".") for layer in weights):
                return number
        return 0

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        attention = None if self.mask is None else self.mask.long()
        output = self.model(input_ids=self.ids, attention_mask=attention, use_cache=False)
        return output.logits[:, :-1].float()

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        def keep(name: str) -> Any:
            return lambda module, inputs, output: self.outputs.__setitem__(name, output)

        handles = [block.register_forward_hook(keep(name)) for name, block in self.blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def exchanged(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """The module with another weight (out, in), until the context ends.

    Another parameter, not other values in the same one: a tied embedding keeps its own.
    """
    original = module.weight
    assert isinstance(original, nn.Parameter)
    module.weight = nn.Parameter(torch.empty_like(original), original.requires_grad)
    try:
        set_weight(module, weight.to(weight_of(module)))
        yield
    finally:
        module.weight = original


@contextmanager
def _answering(block: nn.Module, output: Any) -> Iterator[None]:
    """The block returns `output` without computing, until the context ends."""
    block.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del block.forward
