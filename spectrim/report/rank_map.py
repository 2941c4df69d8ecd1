"""The map of kept ranks: decoder blocks downward, their projections across."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import mean

from spectrim.report.facts import Cell, LayerFacts, cell_of


@dataclass(frozen=True)
class MapCell:
    """The modules of one cell.

    `share` is their mean rank over the maximum, 1 if they are dense; `panel` is the layer whose
    spectrum it opens, "" for none.
    """

    modules: tuple[LayerFacts, ...]
    panel: str

    @property
    def dense(self) -> bool:
        return all(layer.rank is None for layer in self.modules)

    @property
    def share(self) -> float:
        return mean(1.0 if m.rank is None else m.rank / min(m.shape) for m in self.modules)

    @property
    def label(self) -> str:
        """Return the rank; for several modules the mean, dense ones counted at full rank."""
        if self.dense:
            return "dense"
        return str(round(mean(m.rank or min(m.shape) for m in self.modules)))

    @property
    def title(self) -> str:
        if len(self.modules) > 1:
            name = shared_start([layer.name for layer in self.modules]).rstrip(".")
            return f"{name}: {len(self.modules)} modules, mean rank {self.label}"
        [layer] = self.modules
        of = f"of {min(layer.shape)}" if layer.rank else ""
        return f"{layer.name}: {'dense' if layer.rank is None else f'rank {layer.rank}'} {of}"


@dataclass(frozen=True)
class RankMap:
    """The map. groups: the columns' parents with their counts; cells: None for no layer."""

    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[str, list[MapCell | None]]]


def rank_map(layers: Sequence[LayerFacts]) -> RankMap:
    found: dict[Cell, list[LayerFacts]] = {}
    for layer in layers:
        found.setdefault(cell_of(layer.name), []).append(layer)
    blocks = list(dict.fromkeys(cell.block for cell in found))
    projections = sorted(
        dict.fromkeys(cell.projection for cell in found), key=_by_parent(list(found))
    )
    cells = {cell: _cell(modules) for cell, modules in found.items()}
    rows = [(b, [cells.get(Cell(b, p)) for p in projections]) for b in blocks]
    return RankMap(
        _groups(projections),
        short_names([p.rpartition(".")[2] for p in projections]),
        list(zip(_block_labels(blocks), (row for _, row in rows), strict=True)),
    )


def _by_parent(cells: Sequence[Cell]) -> Callable[[str], int]:
    """Return a sort key that groups a parent's projections, in order of appearance."""
    parents = list(dict.fromkeys(cell.projection.rpartition(".")[0] for cell in cells))
    return lambda projection: parents.index(projection.rpartition(".")[0])


def _cell(modules: Sequence[LayerFacts]) -> MapCell:
    panel = next((layer.name for layer in modules if layer.ranks), "")
    return MapCell(tuple(modules), panel)


def _groups(projections: Sequence[str]) -> list[tuple[str, int]]:
    groups: list[tuple[str, int]] = []
    for projection in projections:
        parent = projection.rpartition(".")[0]
        if groups and groups[-1][0] == parent:
            groups[-1] = (parent, groups[-1][1] + 1)
        else:
            groups.append((parent, 1))
    return groups


def shared_start(texts: Sequence[str]) -> str:
    """Return the common prefix of all texts."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def short_names(names: Sequence[str]) -> list[str]:
    """Remove a common ending like `_proj`."""
    ending = shared_start([name[::-1] for name in names])[::-1]
    ending = ending[ending.find("_") :] if "_" in ending else ""
    if len(names) < 2 or not ending or any(name == ending for name in names):
        return list(names)
    return [name.removesuffix(ending) for name in names]


def _block_labels(blocks: Sequence[str]) -> list[str]:
    """Return numbers if all blocks belong to one list."""
    parents = {block.rpartition(".")[0] for block in blocks if block}
    return [block.rpartition(".")[2] if len(parents) == 1 else block for block in blocks]
