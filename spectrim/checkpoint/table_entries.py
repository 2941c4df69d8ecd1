"""A factored table of embeddings in a checkpoint: put in place, checked, multiplied back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from spectrim.errors import CheckpointError
from spectrim.layers import FactoredEmbedding, FactoredHead


def swap_table(model: nn.Module, entry: Mapping[str, Any], inside: Mapping[str, str]) -> None:
    """Put an empty factored table, and its tied head, into an empty model. `inside` gives this
    model's names (a bare base model has no head). Raises CheckpointError."""
    modules = dict(model.named_modules())
    name = inside.get(entry["name"], "")
    old = modules.get(name)
    if type(old) is not nn.Embedding:
        raise CheckpointError(
            f"{entry['name']} is a {type(old).__name__}, expected a plain embedding"
        )
    shape = (old.num_embeddings, old.embedding_dim)
    if entry["rank"] > min(shape):
        raise CheckpointError(
            f"table {name}: rank {entry['rank']} is more than its weight {shape} can have"
        )
    table = FactoredEmbedding.empty(shape, entry["rank"], entry["mean"])
    table.coefficients.padding_idx = old.padding_idx
    model.set_submodule(name, table)
    if entry["head"] in inside:
        head = modules.get(inside[entry["head"]])
        if type(head) is not nn.Linear or head.weight.shape != shape or head.bias is not None:
            raise CheckpointError(f"{entry['head']} cannot be the output side of {name}")
        model.set_submodule(inside[entry["head"]], FactoredHead(table))


def check_table(model: nn.Module, entry: Mapping[str, Any] | None) -> None:
    """Raises CheckpointError unless `entry` describes the model's factored table."""
    if (found := table_entry(model)) != entry:
        raise CheckpointError(
            f"the config's embeddings are {entry}, the model's are {found}; "
            "put what `table_entry` gives for the model in the config"
        )


def table_entry(model: nn.Module) -> dict[str, Any] | None:
    """What a config says of the model's factored table; None for a model without one."""
    modules = list(model.named_modules())
    for name, table in modules:
        if isinstance(table, FactoredEmbedding):
            head = (n for n, m in modules if isinstance(m, FactoredHead) and m.table is table)
            mean = table.basis.bias is not None
            return {"name": name, "rank": table.rank, "mean": mean, "head": next(head, None)}
    return None


def fill_table(plain: Any, module: nn.Module, table: FactoredEmbedding | FactoredHead) -> None:
    """The dense weight in `module` of the model `plain`, the tie to its table with it."""
    if isinstance(table, FactoredHead):
        module.weight = plain.get_input_embeddings().weight
        return
    dtype = table.coefficients.weight.dtype
    module.weight = nn.Parameter(table.dense().to(dtype))
