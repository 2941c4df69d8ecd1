"""The map of kept ranks: decoder blocks downward, their projections across."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import mean

from spectrim.report.facts import Cell, LayerFacts, cell_of

STRENGTHS = {"middle": 0.52, "strong": 0.69}
"""Shares above which labels are light on dark: in a dark page, and in any. Both colors have a
contrast of 4.5 to the ground there."""
MOST_DOWNWARD = 16
"""Blocks of a map with blocks downward; more run across."""
_MOST_ACROSS = 30


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
    def strength(self) -> str:
        """Return the classes of the ground's darkness, by which a label is readable on it."""
        return " ".join(name for name, least in STRENGTHS.items() if self.share > least)

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

    @property
    def is_wide(self) -> bool:
        return len(self.rows) > MOST_DOWNWARD

    @property
    def bands(self) -> list[range]:
        """Return the blocks of each table of a wide map, about as many in each."""
        count = -(-len(self.rows) // _MOST_ACROSS)
        size = -(-len(self.rows) // count)
        starts = range(0, len(self.rows), size)
        return [range(start, min(start + size, len(self.rows))) for start in starts]

    @property
    def names(self) -> list[str]:
        """Return a name for every column, with its parent where the column alone is not one."""
        parents = [group for group, count in self.groups for _ in range(count)]
        twice = {name for name in self.columns if self.columns.count(name) > 1}
        return [
            f"{parent}.{name}" if name in twice and parent else name
            for parent, name in zip(parents, self.columns, strict=True)
        ]


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
