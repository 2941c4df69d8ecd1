"""Sum the statistics of embedding tables; token counts alone need no pass over the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.calibration.any_loss import Loss, check_losses
from spectrim.calibration.in_memory import (
    Batch,
    CalibrationSettings,
    batches,
    rows_per_batch,
    summed_loss,
)
from spectrim.data import TokenBlocks
from spectrim.errors import ModelError
from spectrim.models.hooks import Hook, attach_hooks, frozen_eval
from spectrim.runtime.context import ProgressBar
from spectrim.statistics import TableSums

Add = Callable[[str, Tensor], None]


def sum_table_statistics(
    model: Any,
    blocks: TokenBlocks,
    wanted: frozenset[str],
    settings: CalibrationSettings,
    progress: ProgressBar,
) -> TableSums:
    """Sum what is `wanted` of a language model's table over the real tokens of `blocks`.

    wanted: of "counts", "gradients" and "head", which is `head_inputs` and `head_fisher`.

    Raises:
        ModelError: activations or gradients are not finite.
    """
    table = model.get_input_embeddings()
    real = blocks.ids if blocks.mask is None else blocks.ids[blocks.mask]
    counts = torch.bincount(real.flatten(), minlength=table.num_embeddings)
    sums: TableSums = {"counts": counts.double()}
    if wanted <= {"counts"}:
        return sums
    size = rows_per_batch(blocks, settings.tokens_per_batch)
    steps = batches(blocks, settings.tokens_per_batch, 0, table.weight.device)
    with frozen_eval(model):
        for batch in progress(steps, "embedding statistics", -(-len(blocks) // size)):
            for name, value in _of_batch(model, batch, wanted, settings).items():
                sums[name] = sums.get(name, 0.0) + value.double().cpu()
    return sums


def sum_lookups(
    model: nn.Module, tables: Mapping[str, nn.Embedding], batches: Iterable[Any], loss: Loss
) -> dict[str, TableSums]:
    """Sum the counts and gradients of each table under any loss of any module."""
    sums = {
        name: {
            "counts": torch.zeros(table.num_embeddings, dtype=torch.float64),
            "gradients": torch.zeros(2 * (table.embedding_dim,), dtype=torch.float64),
        }
        for name, table in tables.items()
    }

    def add(name: str, entry: str, value: Tensor) -> None:
        sums[name][entry] += value.double().cpu()

    after = [(table, _lookup_hook(partial(add, name))) for name, table in tables.items()]
    with frozen_eval(model), attach_hooks(after=after):
        for number, batch in enumerate(batches):
            check_losses(loss(model, batch), number).sum().backward()
    return sums


def _of_batch(
    model: Any, batch: Batch, wanted: frozenset[str], settings: CalibrationSettings
) -> TableSums:
    backward = "gradients" in wanted
    sums: TableSums = {}
    hidden: list[Tensor] = []
    before, after = [], []
    if "head" in wanted:
        keep = lambda module, inputs: hidden.append(inputs[0])  # noqa: E731
        before = [(model.get_output_embeddings(), keep)]
    if backward:
        hook = _lookup_hook(lambda entry, value: sums.update({entry: value}), batch.mask)
        after = [(model.get_input_embeddings(), hook)]
    with attach_hooks(before, after), torch.set_grad_enabled(backward):
        attention = None if bool(batch.mask.all()) else batch.mask.long()
        logits = model(input_ids=batch.ids, attention_mask=attention, use_cache=False).logits
        if backward:
            summed_loss(logits, batch, settings).backward()
    if "head" in wanted:
        sums["head_inputs"] = _sum_of_squares(hidden[0].detach()[batch.mask])
        predicted = logits.detach()[batch.mask].float().softmax(-1)
        sums["head_fisher"] = (predicted - predicted.square()).sum(0)
    if any(not bool(torch.isfinite(value).all()) for value in sums.values()):
        raise ModelError(
            f"activations or gradients are not finite on sequences from {batch.first_sequence} "
            "on; check the weights for NaN and use float32"
        )
    return sums


def _lookup_hook(add: Add, mask: Tensor | None = None) -> Hook:
    """Return a hook that adds the gradients at a table's output over the tokens of `mask`.

    Without a mask it adds all, and their counts. The output starts the graph.
    """

    def add_gradient(g: Tensor) -> None:
        add("gradients", _sum_of_squares(g.flatten(0, -2) if mask is None else g[mask]))

    def hook(table: nn.Embedding, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if mask is None:
            ids = inputs[0].flatten().cpu()
            add("counts", torch.bincount(ids, minlength=table.num_embeddings))
        start = output if output.requires_grad else output.detach().requires_grad_(True)
        start.register_hook(add_gradient)
        return start

    return hook


def _sum_of_squares(rows: Tensor) -> Tensor:
    """Return `sum_t r_t r_t^T` (d, d) in float32."""
    rows = rows.float()
    return rows.T @ rows
