"""One pass over the tokens for what a table's metric needs; counting alone needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from spectrim.calibration.in_memory import Batch, CalibrationSettings, batches, summed_loss
from spectrim.data import TokenBlocks
from spectrim.embeddings._problem import TableStatistics
from spectrim.errors import ModelError

Sums = dict[str, Tensor]
ProgressBar = Callable[[Iterable[Any], str, int], Iterable[Any]]


def gather(
    model: Any,
    blocks: TokenBlocks,
    wanted: frozenset[str],
    settings: CalibrationSettings,
    track: ProgressBar,
) -> Sums:
    """Sums over real tokens: `counts` (V,), and as wanted `gradients` (d, d), `head_inputs`
    (d, d) and `head_fisher` (V,). The model is left as it was. Raises ModelError."""
    table = model.get_input_embeddings()
    device = table.weight.device
    real = blocks.ids if blocks.mask is None else blocks.ids[blocks.mask]
    counts = torch.bincount(real.flatten(), minlength=table.num_embeddings)
    sums: Sums = {"counts": counts.double()}
    if wanted <= {"counts"}:
        return sums
    size = max(1, settings.tokens_per_batch // blocks.ids.shape[1])
    steps = batches(blocks, settings.tokens_per_batch, 0, device)
    with _evaluating(model):
        for batch in track(steps, "embedding statistics", -(-len(blocks) // size)):
            for name, value in _of_batch(model, batch, wanted, settings).items():
                sums[name] = sums.get(name, 0.0) + value.double().cpu()
    return sums


def finish(sums: Sums) -> TableStatistics:
    """Per token."""
    tokens = sums["counts"].sum().clamp_min(1)
    rest = {name: value / tokens for name, value in sums.items() if name != "counts"}
    return TableStatistics(sums["counts"], **rest)


def _of_batch(
    model: Any, batch: Batch, wanted: frozenset[str], settings: CalibrationSettings
) -> Sums:
    backward = "gradients" in wanted
    attention = None if bool(batch.mask.all()) else batch.mask.long()
    with _observed(model, backward) as seen, torch.set_grad_enabled(backward):
        output = model(input_ids=batch.ids, attention_mask=attention, use_cache=False)
    found: Sums = {}
    if backward:
        loss = summed_loss(output.logits, batch, settings)
        (gradient,) = torch.autograd.grad(loss, seen["looked up"])
        found["gradients"] = _outer(gradient[batch.mask])
    if "head" in wanted:
        found["head_inputs"] = _outer(seen["hidden"].detach()[batch.mask])
        predicted = output.logits.detach()[batch.mask].float().softmax(-1)
        found["head_fisher"] = (predicted - predicted.square()).sum(0)
    if any(not bool(torch.isfinite(value).all()) for value in found.values()):
        raise ModelError(
            f"activations or gradients are not finite on sequences from {batch.first_sequence} "
            "on; check the weights for NaN and use float32"
        )
    return found


def _outer(rows: Tensor) -> Tensor:
    rows = rows.float()
    return rows.T @ rows


@contextmanager
def _observed(model: Any, backward: bool) -> Iterator[Sums]:
    """What is looked up (the start of the graph with `backward`) and what enters the head."""
    seen: Sums = {}

    def looked_up(module: object, inputs: object, output: Tensor) -> Tensor:
        seen["looked up"] = output.detach().requires_grad_(backward)
        return seen["looked up"]

    def hidden(module: object, inputs: tuple[Tensor, ...]) -> None:
        seen["hidden"] = inputs[0]

    handles = [model.get_input_embeddings().register_forward_hook(looked_up)]
    handles.append(model.get_output_embeddings().register_forward_pre_hook(hidden))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
