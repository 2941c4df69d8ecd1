"""Find a model's embedding table and put factors in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from spectrim.errors import ModelError
from spectrim.layers import FactoredEmbedding, FactoredHead
from spectrim.models.replace import replace_layer


@dataclass(frozen=True)
class TableLocation:
    """Names of the input embedding and, where it is tied to it, of the output embedding."""

    name: str
    head: str | None
    shape: tuple[int, int]


def find_table(model: Any) -> TableLocation:
    """Locate the embedding table. Raises ModelError for one that is more than a lookup."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    name = _name_of(model, table)
    if type(table) is not nn.Embedding or table.max_norm is not None:
        raise ModelError(
            f"{name} is a {type(table).__name__}, expected a plain nn.Embedding; "
            "leave `embeddings` out of the recipe for this model"
        )
    tied = head is not None and getattr(head, "weight", None) is table.weight
    if tied and (type(head) is not nn.Linear or head.bias is not None):
        raise ModelError(
            f"{_name_of(model, head)} is tied to {name} and is a {type(head).__name__} with a "
            "bias or arithmetic of its own; leave `embeddings` out of the recipe"
        )
    shape = (table.num_embeddings, table.embedding_dim)
    return TableLocation(name, _name_of(model, head) if tied else None, shape)


def replace_table(model: Any, place: TableLocation, table: FactoredEmbedding) -> None:
    """Put `table` there, for a tied output embedding too, in the old one's dtype and mode.

    The tie is then a matter of modules, so the model's config says there is none of tensors.
    """
    padding = model.get_submodule(place.name).padding_idx
    table.coefficients.padding_idx = padding
    replace_layer(model, place.name, table)
    if place.head is not None:
        head = FactoredHead(table)
        head.train(model.get_submodule(place.head).training)
        model.set_submodule(place.head, head)
        model.config.tie_word_embeddings = False  # nothing is left for transformers to tie
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
