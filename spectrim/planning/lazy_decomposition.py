"""Decompositions on disk, one file for each layer, whose factors are read on access."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from spectrim.errors import CheckpointError
from spectrim.linalg.truncated import Factors
from spectrim.planning.decomposition import Decomposition
from spectrim.runtime.cache import load_if_valid_locally
from spectrim.runtime.files import read_header, read_some, read_tensors

_SMALL = ("curve", "spectrum", "signed")


class StoredFactors(Mapping[str, Factors]):
    """Factors of single layers by name, each in its own file."""

    def __init__(self, files: Mapping[str, Path]):
        self._files = files

    def __getitem__(self, name: str) -> Factors:
        return Decomposition.load(self._files[name]).factors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass
class StoredDecomposition(Decomposition):
    """A decomposition with curves and spectra in memory, for planning, and factors in files."""

    spectra: dict[str, Tensor] = field(default_factory=dict)

    def spectrum(self, name: str) -> Tensor:
        return self.spectra[name]


@dataclass(frozen=True)
class LayerFiles:
    """Decomposed layers in a directory, a file for each.

    saved: called with the name of each layer that has been stored.
    """

    directory: Path
    saved: Callable[[str], object] = str

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"

    def missing(self, names: Sequence[str]) -> list[str]:
        """Return the layers to decompose; damaged files are removed with a warning."""
        found = []
        for name in names:
            if load_if_valid_locally(self.path(name), read_tensors) is None:
                self.path(name).unlink(missing_ok=True)
                found.append(name)
        return found

    def save(self, decomposition: Decomposition) -> None:
        """Store the decomposition of one layer. Raises InputError if it cannot be written."""
        [name] = decomposition.shapes
        save_layer(decomposition, self.path(name))
        self.saved(name)

    def load(self, names: Sequence[str]) -> StoredDecomposition:
        """Return the layers. Raises CheckpointError for a damaged file."""
        return stored_decomposition([self.path(name) for name in names])


def save_layer(decomposition: Decomposition, path: Path) -> None:
    """Write the decomposition of one layer, its factors in float32.

    Raises InputError if it cannot be written.
    """
    factors = {
        name: Factors(f.left.float(), f.right.float(), f.spectrum, f.bias_shift)
        for name, f in decomposition.factors.items()
    }
    replace(decomposition, factors=factors).save(path)


def stored_decomposition(files: Sequence[Path]) -> StoredDecomposition:
    """Return the decomposition in files by `save_layer`, whose factors are read on access.

    Raises InputError for a missing file, CheckpointError for a damaged one.
    """
    parts = [_small(path) for path in files]
    if not parts:
        raise CheckpointError("no layer was decomposed; check the targets of the recipe")
    result = parts[0]
    places: dict[str, Path] = {}
    for path, part in zip(files, parts, strict=True):
        result.shapes |= part.shapes
        result.curves |= part.curves
        result.first_order_effects |= part.first_order_effects
        result.spectra |= part.spectra
        places |= dict.fromkeys(part.shapes, path)
    factors: Any = StoredFactors(places)
    return replace(result, factors=factors)


def _small(path: Path) -> StoredDecomposition:
    """Load all but the factors, into new tensors that do not keep the file's pages."""
    names, metadata = read_header(path)
    wanted = [name for name in names if name.rpartition("|")[2] in _SMALL]
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in _SMALL}
    for name, tensor in read_some(path, wanted).items():
        layer, _, kind = name.rpartition("|")
        found[kind][layer] = tensor.clone()
    try:
        return StoredDecomposition(
            metadata["method"],
            {name: (int(out), int(inner)) for name, (out, inner) in metadata["shapes"].items()},
            {},
            found["curve"],
            metadata["units"],
            provenance=metadata["provenance"],
            first_order_effects=found["signed"],
            spectra=found["spectrum"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a decomposition: {error}") from error
