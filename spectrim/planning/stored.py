"""Decompositions on disk, one file for each layer: factors are read where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from spectrim.errors import CheckpointError
from spectrim.linalg.truncated import Factors
from spectrim.planning.decomposition import Decomposition


class StoredFactors(Mapping[str, Factors]):
    """By name the factors of single layers, each in a file of its own."""

    def __init__(self, files: Mapping[str, Path]):
        self._files = files

    def __getitem__(self, name: str) -> Factors:
        factors = Decomposition.load(self._files[name]).factors[name]
        # a tensor keeps all of its file mapped: not for one that stays, as a spectrum does
        return replace(factors, spectrum=factors.spectrum.clone())

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def save_layer(decomposition: Decomposition, path: Path) -> None:
    """The decomposition of one layer, its factors in float32: half the room.

    Raises InputError when it cannot be written.
    """
    factors = {
        name: Factors(f.left.float(), f.right.float(), f.spectrum, f.offset)
        for name, f in decomposition.factors.items()
    }
    replace(decomposition, factors=factors).save(path)


def stored_decomposition(files: Sequence[Path]) -> Decomposition:
    """What `save_layer` wrote, as one value that holds the curves and reads the factors.

    Raises InputError for a missing file, CheckpointError for a damaged one.
    """
    parts = [_without_factors(path) for path in files]
    if not parts:
        raise CheckpointError("no layer was decomposed")
    shapes: dict[str, tuple[int, int]] = {}
    curves: dict[str, Tensor] = {}
    signed: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    for path, part in zip(files, parts, strict=True):
        shapes |= part.shapes
        curves |= part.curves
        signed |= part.signed
        places |= dict.fromkeys(part.shapes, path)
    factors: Any = StoredFactors(places)
    return replace(parts[0], shapes=shapes, curves=curves, signed=signed, factors=factors)


def _without_factors(path: Path) -> Decomposition:
    part = Decomposition.load(path)
    curves = {name: curve.clone() for name, curve in part.curves.items()}
    signed = {name: effects.clone() for name, effects in part.signed.items()}
    return replace(part, factors={}, curves=curves, signed=signed)
