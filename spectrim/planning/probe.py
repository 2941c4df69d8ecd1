"""Divergence of a model with some layers cut from the model itself, on a few tokens.

    KL = E_t[ sum_v p(v) (log p(v) - log q(v)) ],   p the original, q the changed model

Nats per token. The expected loss increase under the model's own predictions: far less
noisy than a difference of two losses on the same tokens. Blocks before the first changed
one are not run again: their outputs are stored (tokens x width each).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spectrim.calibration.in_memory import Rows
from spectrim.calibration.labeled import labeled_batches
from spectrim.data import TokenBlocks
from spectrim.data.labeled import LabeledRows
from spectrim.linalg.truncated import Factors
from spectrim.models.expert_removal import ExpertRemoval, without_experts
from spectrim.models.hooks import attach_hooks, override_forward
from spectrim.models.linear import get_bias, get_weight, set_weight
from spectrim.models.targets import decoder_blocks
from spectrim.planning.probe_tokens import vocabulary_size
from spectrim.statistics import at_least_float32

LOGITS_AT_ONCE = 64 * 2**20
"""Bytes of the logits that are computed and compared at once."""
TOKENS_AT_ONCE = 128


class DivergenceProbe(Protocol):
    def divergence(
        self,
        factors: Mapping[str, Factors],
        ranks: Mapping[str, int],
        removed: Sequence[ExpertRemoval] = (),
    ) -> float: ...


@dataclass(frozen=True)
class _Inputs:
    """Some rows, as a call that returns their logits.

    Attributes:
        predict: returns (B, T - 1, V) of text, (B, T, V) of targets, (B, C) of classes.
        counted: marks the predictions that are measured, of the logits' shape without the last.
    """

    predict: Callable[[nn.Module], Tensor]
    counted: Tensor


@dataclass(frozen=True)
class _Rows:
    """Some rows with every block's output, and what the original predicts.

    Attributes:
        probabilities: of the logits' shape.
        negative_entropy: sum_v p log p, of the shape of `inputs.counted`.
    """

    inputs: _Inputs
    outputs: dict[str, Any]
    probabilities: Tensor
    negative_entropy: Tensor


class Probe:
    """`divergence(factors, {layer name: rank}, removed)` on `tokens` tokens of `blocks`.

    Of examples with labels on all of them: per target token, or per example of a classifier.
    Memory: predictions x vocabulary x 4 bytes for the original's probabilities, and a few
    times `LOGITS_AT_ONCE`.
    """

    def __init__(self, model: nn.Module, blocks: Rows, tokens: int):
        self.model = model
        self.ids = _ids(blocks, tokens)
        self.blocks = decoder_blocks(model)
        self._replayable: dict[int, bool] = {0: True}
        self._parts = [self._record(inputs) for inputs in _inputs(model, blocks, tokens)]
        run = self._parts[0].outputs
        self.blocks = [(name, block) for name, block in self.blocks if name in run]

    @torch.inference_mode()
    def divergence(
        self,
        factors: Mapping[str, Factors],
        ranks: Mapping[str, int],
        removed: Sequence[ExpertRemoval] = (),
    ) -> float:
        first = self._first_changed([*ranks, *(removal.experts for removal in removed)])
        first = first if self._is_replayable(first) else 0
        with changed(self.model, factors, ranks, removed):
            summed = sum(self._divergence(rows, first) for rows in self._parts)
        return summed / sum(int(rows.inputs.counted.sum()) for rows in self._parts)

    def _divergence(self, rows: _Rows, first: int) -> float:
        """Return the sum over counted predictions, of a model that is changed now."""
        with self._replayed(rows, first):
            changed = self._logits(rows.inputs)
        cross = changed.logsumexp(-1) - torch.linalg.vecdot(rows.probabilities, changed)
        per_token = (rows.negative_entropy + cross)[rows.inputs.counted]
        return float(per_token.double().sum())

    @contextmanager
    def _replayed(self, rows: _Rows, count: int) -> Iterator[None]:
        """Replace the first `count` blocks by their stored outputs for the original."""
        blocks = self.blocks[:count]
        with replay((block, rows.outputs[name]) for name, block in blocks):
            yield

    def _is_replayable(self, count: int) -> bool:
        """Return whether the later blocks need only the output of the first `count`.

        Shared keys and values passed beside it, for example, would be missing.
        """
        if count not in self._replayable:
            rows = self._parts[0]
            try:
                with self._replayed(rows, count):
                    logits = self._logits(rows.inputs)
                to_probabilities_(logits)
                same = torch.equal(logits, rows.probabilities)
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
    def _logits(self, inputs: _Inputs) -> Tensor:
        return at_least_float32(inputs.predict(self.model))

    @torch.inference_mode()
    def _record(self, inputs: _Inputs) -> _Rows:
        outputs: dict[str, Any] = {}

        def keep(name: str) -> Any:
            return lambda module, inputs, output: outputs.__setitem__(name, output)

        with attach_hooks(after=[(block, keep(name)) for name, block in self.blocks]):
            logits = self._logits(inputs)
        return _Rows(inputs, outputs, logits, to_probabilities_(logits))


@torch.inference_mode()
def to_probabilities_(logits: Tensor) -> Tensor:
    """Turn logits (..., V) into probabilities in place; return sum_v p log p, (...)."""
    entropies = []
    for row in logits if logits.dim() > 2 else logits[None]:
        for some in row.split(TOKENS_AT_ONCE):
            probabilities = some.softmax(-1)
            entropies.append(torch.linalg.vecdot(probabilities, some.log_softmax(-1)))
            some.copy_(probabilities)
    return torch.cat(entropies).view(logits.shape[:-1])


def has_divergence(blocks: Rows) -> bool:
    """Return whether models predict probabilities, and not scores."""
    return isinstance(blocks, TokenBlocks) or not blocks.labels.is_floating_point()


def _inputs(model: nn.Module, blocks: Rows, tokens: int) -> Iterator[_Inputs]:
    """Yield the rows to measure on, as many at once as their logits allow."""
    device = next(model.parameters()).device
    if isinstance(blocks, LabeledRows):
        for batch in labeled_batches(blocks, len(blocks) * blocks.length, 0, device):
            yield _Inputs(batch.forward, batch.counted)
        return
    ids = _ids(blocks, tokens)
    at_once = LOGITS_AT_ONCE // (4 * ids.shape[1] * vocabulary_size(model))
    counted = counted_positions(blocks, len(ids))
    for part in torch.arange(len(ids)).split(max(1, at_once)):
        mask = None if blocks.mask is None else blocks.mask[part].long().to(device)
        predict = partial(_next_tokens, ids[part].to(device), mask)
        yield _Inputs(predict, counted[part].to(device))


def _ids(blocks: Rows, tokens: int) -> Tensor:
    """Return the ids of all rows with labels, or of the first rows of a text."""
    if isinstance(blocks, LabeledRows):
        return blocks.inputs.get("input_ids", blocks.labels)
    return blocks.ids[: max(1, tokens // blocks.ids.shape[1])]


def _next_tokens(ids: Tensor, mask: Tensor | None, model: nn.Module) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]


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
def changed(
    model: nn.Module,
    factors: Mapping[str, Factors],
    ranks: Mapping[str, int],
    removed: Sequence[ExpertRemoval],
) -> Iterator[None]:
    """Cut the layers of `ranks` and remove experts, until the context is left."""
    with ExitStack() as stack:
        for name, rank in ranks.items():
            stack.enter_context(swap_weights(model.get_submodule(name), factors[name], rank))
        stack.enter_context(without_experts(model, removed))
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
