"""The linear layers of a model to compress.

Decoder blocks are the modules whose class the model itself names in `_no_split_modules`;
every linear layer inside them is a target. No model type and no projection name is known
here. A model that names no blocks gives all its linear layers but the output embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from spectrim.errors import ModelError
from spectrim.layers import CompactLinear
from spectrim.models.linear import get_shape, is_linear


@dataclass(frozen=True)
class Target:
    """A linear layer by its module name, with its weight shape (out, in)."""

    name: str
    shape: tuple[int, int]

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]


def block_class_names(model: nn.Module) -> set[str]:
    names: set[str] = set()
    for module in model.modules():
        names |= set(getattr(module, "_no_split_modules", None) or ())
    return names


def decoder_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the outermost modules that the model declares not to be split, in order."""
    wanted = block_class_names(model)
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer, _ in found)
        if type(module).__name__ in wanted and not inside:
            found.append((name, module))
    return found


def find_targets(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Target]:
    """Targets in model order. `include` and `exclude` are regular expressions on names;
    a layer outside the decoder blocks (the output embedding, say) is a target only when
    `include` matches it. Raises ModelError when nothing is left, or a pattern matches nothing.
    """
    dense = dict(_dense_layers(model))
    default = default_names(model, list(dense))
    for pattern in (*include, *exclude):
        _check_matches(pattern, dense)
    names = [n for n in dense if _any(include, n)] if include else default
    names = [n for n in names if not _any(exclude, n)]
    if not (names or include or exclude):
        raise ModelError(
            f"{type(model).__name__} has no linear layer to compress in its blocks, "
            f"{len(dense)} elsewhere; name layers of any place by --include"
        )
    if not names:
        raise ModelError(
            f"no linear layer to compress in {type(model).__name__}: "
            f"{len(dense)} dense linear layers, none left by the patterns; "
            "loosen --include / --exclude"
        )
    return [Target(name, get_shape(dense[name])) for name in names]


def _dense_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    factored: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, CompactLinear):
            factored.append(name + ".")
        elif is_linear(module) and not name.startswith(tuple(factored)):
            yield name, module


def default_names(
    model: nn.Module, names: Sequence[str], exclude: Sequence[str] = ()
) -> list[str]:
    """Return those of `names` that are targets when nothing is included."""
    names = [name for name in names if not _any(exclude, name)]
    prefixes = tuple(name + "." for name, _ in decoder_blocks(model))
    if prefixes:
        return [name for name in names if name.startswith(prefixes)]
    get_output = getattr(model, "get_output_embeddings", lambda: None)
    return [name for name in names if model.get_submodule(name) is not get_output()]


def _any(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _check_matches(pattern: str, dense: dict[str, nn.Module]) -> None:
    try:
        matched = any(re.search(pattern, name) for name in dense)
    except re.error as error:
        raise ModelError(f"'{pattern}' is not a regular expression: {error}") from error
    if not matched:
        some = ", ".join(list(dense)[:3])
        raise ModelError(f"pattern '{pattern}' matches no linear layer; names look like {some}")
