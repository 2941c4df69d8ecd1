"""Divergence of a model with some layers cut from the model itself, on a few tokens.

    KL = E_t[ sum_v p(v) (log p(v) - log q(v)) ],   p the original, q the changed model

Nats per token. The expected loss increase under the model's own predictions: far less
noisy than a difference of two losses on the same tokens. Blocks before the first changed
one are not run again: their outputs are stored (tokens x width each).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spectrim.data import TokenBlocks
from spectrim.linalg.truncated import Factors
from spectrim.models.expert_removal import ExpertRemoval, without_experts
from spectrim.models.hooks import attach_hooks, override_forward
from spectrim.models.linear import get_bias, get_weight, set_weight
from spectrim.models.targets import decoder_blocks
from spectrim.statistics import at_least_float32


class DivergenceProbe(Protocol):
    def divergence(
        self,
        factors: Mapping[str, Factors],
        ranks: Mapping[str, int],
        removed: Sequence[ExpertRemoval] = (),
    ) -> float: ...


class Probe:
    """`divergence(factors, {layer name: rank}, removed)` on `tokens` tokens of `blocks`.

    Memory: tokens x vocabulary x 4 bytes for the original's probabilities.
    """

    def __init__(self, model: nn.Module, blocks: TokenBlocks, tokens: int):
        rows = max(1, tokens // blocks.ids.shape[1])
        device = next(model.parameters()).device
        self.model = model
        self.ids = blocks.ids[:rows].to(device)
        self.mask = None if blocks.mask is None else blocks.mask[:rows].to(device)
        self.counted = counted_positions(blocks, rows).to(device)
        self.blocks = decoder_blocks(model)
        self.outputs: dict[str, Any] = {}
        self._replayable: dict[int, bool] = {0: True}
        with self._recorded():
            logits = self._logits()
        self.probabilities = logits.softmax(-1)
        self.negative_entropy = torch.linalg.vecdot(self.probabilities, logits.log_softmax(-1))

    @torch.inference_mode()
    def divergence(
        self,
        factors: Mapping[str, Factors],
        ranks: Mapping[str, int],
        removed: Sequence[ExpertRemoval] = (),
    ) -> float:
        first = self._first_changed([*ranks, *(removal.experts for removal in removed)])
        first = first if self._is_replayable(first) else 0
        with ExitStack() as stack:
            for name, rank in ranks.items():
                module = self.model.get_submodule(name)
                stack.enter_context(swap_weights(module, factors[name], rank))
            stack.enter_context(without_experts(self.model, removed))
            stack.enter_context(self._replayed(first))
            changed = self._logits()
        cross = changed.logsumexp(-1) - torch.linalg.vecdot(self.probabilities, changed)
        per_token = (self.negative_entropy + cross)[self.counted]
        return float(per_token.double().mean())

    @contextmanager
    def _replayed(self, count: int) -> Iterator[None]:
        """Replace the first `count` blocks by their stored outputs for the original."""
        blocks = self.blocks[:count]
        with replay((block, self.outputs[name]) for name, block in blocks):
            yield

    def _is_replayable(self, count: int) -> bool:
        """Return whether the later blocks need only the output of the first `count`.

        Shared keys and values passed beside it, for example, would be missing.
        """
        if count not in self._replayable:
            try:
                with self._replayed(count):
                    same = torch.equal(self._logits().softmax(-1), self.probabilities)
            except (KeyError, IndexError, TypeError, AttributeError, RuntimeError):
                same = False
            self._replayable[count] = same
        return self._replayable[count]

    def _first_changed(self, layers: Iterable[str]) -> int:
        for number, (name, _) in enumerate(self.blocks):
            if any(layer.startswith(name + ".") for layer in layers):
                return number
        return 0

    @torch.inference_mode()
    def _logits(self) -> Tensor:
        attention = None if self.mask is None else self.mask.long()
        output = self.model(input_ids=self.ids, attention_mask=attention, use_cache=False)
        return at_least_float32(output.logits[:, :-1])

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        def keep(name: str) -> Any:
            return lambda module, inputs, output: self.outputs.__setitem__(name, output)

        with attach_hooks(after=[(block, keep(name)) for name, block in self.blocks]):
            yield


def counted_positions(blocks: TokenBlocks, rows: int) -> Tensor:
    """Return (rows, T - 1) bool: the positions of the first rows whose next token counts."""
    if blocks.scored is not None:
        return blocks.scored[:rows, 1:]
    if blocks.mask is None:
        return torch.ones_like(blocks.ids[:rows, 1:], dtype=torch.bool)
    return blocks.mask[:rows, :-1]


@contextmanager
def replay(outputs: Iterable[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Let each module return its stored output, until the context ends."""
    with ExitStack() as stack:
        for module, output in outputs:
            stack.enter_context(override_forward(module, lambda *_, o=output, **__: o))
        yield


@contextmanager
def swap_weights(module: nn.Module, factors: Factors, rank: int) -> Iterator[None]:
    """Give the module the weight and bias of `factors` at `rank`, until the context ends.

    The parameters are replaced, not overwritten: a tied embedding keeps its own.
    """
    weight, bias = module.weight, module.bias
    assert isinstance(weight, nn.Parameter)
    module.weight = nn.Parameter(torch.empty_like(weight), weight.requires_grad)
    try:
        set_weight(module, factors.weight(rank).to(get_weight(module)))
        if factors.bias_shift is not None:
            shifted = factors.bias(rank, get_bias(module))
            assert shifted is not None
            module.bias = nn.Parameter(shifted.to(weight), requires_grad=False)
        yield
    finally:
        module.weight = weight
        module.bias = bias
