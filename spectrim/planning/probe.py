"""Divergence of a model with some layers cut from the model itself, on a few tokens.

    KL = E_t[ sum_v p(v) (log p(v) - log q(v)) ],   p the original, q the changed model

Nats per token. The expected loss increase under the model's own predictions: far less
noisy than a difference of two losses on the same tokens. Blocks before the first changed
one are not run again: their outputs are stored (tokens x width each).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spectrim.calibration.in_memory import Rows
from spectrim.calibration.labeled import labeled_batches
from spectrim.data import TokenBlocks
from spectrim.data.labeled import LabeledRows
from spectrim.linalg.truncated import Factors
from spectrim.models.hooks import attach_hooks, override_forward
from spectrim.models.linear import get_bias, get_weight, set_weight
from spectrim.models.targets import decoder_blocks
from spectrim.statistics import at_least_float32


class DivergenceProbe(Protocol):
    def divergence(self, factors: Mapping[str, Factors], ranks: Mapping[str, int]) -> float: ...


class Probe:
    """`divergence(factors, {layer name: rank})` on the first `tokens` tokens of `blocks`.

    Of examples with labels on all of them: per target token, or per example of a classifier.
    Memory: predictions x vocabulary x 4 bytes for the original's probabilities.
    """

    def __init__(self, model: nn.Module, blocks: Rows, tokens: int):
        device = next(model.parameters()).device
        self.model = model
        self._predict, self.ids, self.counted = _predictions(blocks, tokens, device)
        self.blocks = decoder_blocks(model)
        self.outputs: dict[str, Any] = {}
        self._replayable: dict[int, bool] = {0: True}
        with self._recorded():
            logits = self._logits()
        self.blocks = [(name, block) for name, block in self.blocks if name in self.outputs]
        self.probabilities = logits.softmax(-1)
        self.negative_entropy = torch.linalg.vecdot(self.probabilities, logits.log_softmax(-1))

    @torch.inference_mode()
    def divergence(self, factors: Mapping[str, Factors], ranks: Mapping[str, int]) -> float:
        first = self._first_changed(ranks)
        first = first if self._is_replayable(first) else 0
        with ExitStack() as stack:
            for name, rank in ranks.items():
                module = self.model.get_submodule(name)
                stack.enter_context(swap_weights(module, factors[name], rank))
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
        return at_least_float32(self._predict(self.model))

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        def keep(name: str) -> Any:
            return lambda module, inputs, output: self.outputs.__setitem__(name, output)

        with attach_hooks(after=[(block, keep(name)) for name, block in self.blocks]):
            yield


def has_divergence(blocks: Rows) -> bool:
    """Return whether models predict probabilities, and not scores."""
    return isinstance(blocks, TokenBlocks) or not blocks.labels.is_floating_point()


def _predictions(
    blocks: Rows, tokens: int, device: torch.device
) -> tuple[Callable[[nn.Module], Tensor], Tensor, Tensor]:
    """Return what gives the logits of all predictions, the inputs' ids, and which count."""
    if isinstance(blocks, LabeledRows):
        size = len(blocks) * blocks.length
        batches = list(labeled_batches(blocks, size, 0, device))  # several if no row is padded
        counted = torch.cat([batch.counted for batch in batches])
        return (
            lambda model: torch.cat([batch.forward(model) for batch in batches]),
            blocks.inputs["input_ids"],
            counted,
        )
    rows = max(1, tokens // blocks.ids.shape[1])
    ids = blocks.ids[:rows].to(device)
    attention = None if blocks.mask is None else blocks.mask[:rows].long().to(device)

    def predict(model: nn.Module) -> Tensor:
        output = model(input_ids=ids, attention_mask=attention, use_cache=False)
        return output.logits[:, :-1]

    return predict, ids, counted_positions(blocks, rows).to(device)


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
