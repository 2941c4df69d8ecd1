"""Snapshots of decomposed layers and of the figures of probes, for runs that are resumed.

ENTRY.parts/00000.safetensors, ...   decomposed layers, some to a file
ENTRY.parts/STAGE.json               figures of forward passes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from spectrim.errors import CheckpointError
from spectrim.linalg.truncated import Factors
from spectrim.models.expert_removal import ExpertRemoval
from spectrim.planning.block_probe import BlockProbe
from spectrim.planning.decomposition import Decomposition
from spectrim.planning.probe import Probe
from spectrim.runtime.files import read_values, write_values
from spectrim.runtime.snapshots import Snapshots


class LayerSnapshots:
    """Decomposed layers in `snapshots`."""

    def __init__(self, snapshots: Snapshots):
        self._snapshots = snapshots
        self._stored: set[str] = set()

    def load(self) -> Decomposition | None:
        """Return the stored layers, without those of damaged files."""
        result: Decomposition | None = None
        for name in self._snapshots.names("*.safetensors"):
            part = self._snapshots.load(name, Decomposition.load)
            if part is None:
                continue
            self._stored |= set(part.shapes)
            if result is None:
                result = part
            else:
                result.update(part)
        return result

    def save_if_due(self, result: Decomposition) -> None:
        """Store those layers of `result` that are not stored yet."""
        if not self._snapshots.due():
            return
        new = [name for name in result.shapes if name not in self._stored]
        number = len(self._snapshots.names("*.safetensors"))
        self._snapshots.save(f"{number:05d}.safetensors", result.select(new).save)
        self._stored |= set(new)


class ResumableProbe:
    """A probe that stores its divergences in `snapshots`, in a file for each `stage`."""

    def __init__(self, probe: Probe | BlockProbe, snapshots: Snapshots, stage: str):
        self.probe = probe
        self._snapshots = snapshots
        self._file = f"{stage}.json"
        self._figures = snapshots.load(self._file, _read_figures) or {}

    def divergence(
        self,
        factors: Mapping[str, Factors],
        ranks: Mapping[str, int],
        removed: Sequence[ExpertRemoval] = (),
    ) -> float:
        """Return the probe's divergence, from a snapshot where it holds it."""
        kind = type(self.probe).__name__
        change = [dict(ranks), *map(asdict, removed)]
        text = json.dumps([kind, list(self.probe.ids.shape), *change], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:20]
        if name not in self._figures:
            self._figures[name] = self.probe.divergence(factors, ranks, removed)
            if self._snapshots.due():
                self._snapshots.save(self._file, self._write)
        return self._figures[name]

    def _write(self, path: Path) -> None:
        write_values(path, self._figures)


def _read_figures(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in read_values(path).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a file of probe figures: {error}") from error
