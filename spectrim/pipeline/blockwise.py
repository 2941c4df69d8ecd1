"""Factors of a model that is larger than memory: one part of it, one layer at a time.

    shards -> statistics, a file per block -> factors, a file per layer

streamed-HASH/factors/LAYER.safetensors   factors, which are read on access
streamed-HASH/calibration.json            what was calibrated, without the statistics
calibration-HASH.parts/                   how far it is; activations; statistics, which are
                                          deleted as soon as their block is decomposed

An interrupted run resumes from the files.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filelock import Timeout
from torch import nn

from spectrim.calibration.blockwise import BlockwiseWalk, Places
from spectrim.calibration.in_memory import rows_per_batch
from spectrim.errors import DamagedFileError, InputError, ModelError
from spectrim.models.offload import Activations, StreamedModel
from spectrim.models.prepare import Preparation
from spectrim.pipeline import compatibility
from spectrim.pipeline.calibration_defaults import calibration_settings, few_tokens_note
from spectrim.pipeline.decompose import decompose, provenance_of, silent_layers
from spectrim.pipeline.inputs import calibration_blocks, calibration_key, prepare
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import Decomposition
from spectrim.planning.lazy_decomposition import LayerFiles
from spectrim.runtime.cache import load_if_valid_locally
from spectrim.runtime.context import RunContext
from spectrim.runtime.files import lock_file, read_values, write_values
from spectrim.runtime.memory import trim_memory
from spectrim.runtime.snapshots import Snapshots
from spectrim.statistics import Calibration, load_calibration

SUMMARY = "calibration.json"


def factorize_streamed(
    source: StreamedModel, tokenizer: Any, recipe: Recipe, context: RunContext
) -> Decomposition:
    """Return what `factorize` returns, up to rounding, with factors in files of the cache.

    Raises InputError for a recipe that needs the whole model and for a cache without a
    directory, and what `factorize` raises.
    """
    recipe = compatibility.in_parts(recipe)
    if context.cache.root is None:
        raise InputError(
            "the factors of a model that is read in parts stay in files: give a cache with a "
            "directory, RunContext(Cache(DIRECTORY))"
        )
    run = _run_for(source, tokenizer, recipe, context)
    with _alone(run.directory.with_suffix(".lock")):
        calibration = run.calibration()
        files = LayerFiles(run.factors, partial(run.drop_used, calibration))
        result = decompose(source, calibration, recipe, files, context)
        run.snapshots.finish()
    return result


def _run_for(
    source: StreamedModel, tokenizer: Any, recipe: Recipe, context: RunContext
) -> _Run:
    ready = prepare(source, recipe, context.cache)
    _check_used_once(source, ready)
    blocks = calibration_blocks(source.model, tokenizer, recipe, cache=context.cache)
    settings = calibration_settings(source.model, ready.targets, blocks, recipe)
    length = blocks.ids.shape[1]
    rows = source.sizes.batch_rows or rows_per_batch(blocks, settings.tokens_per_batch)
    settings = replace(settings, tokens_per_batch=rows * length)
    key = calibration_key(source.fingerprint, blocks, settings, ready.targets)
    key |= {"method": [recipe.method, recipe.method_options], "rows": rows}
    entry, snapshots = (context.cache.path(kind, key) for kind in ("streamed", "calibration"))
    assert entry is not None
    places = _places(source, Snapshots(snapshots))
    walk = BlockwiseWalk(source, ready.targets, blocks, settings, places)
    noted = {"dense": ready.dense, "key": key, **few_tokens_note(blocks, ready.targets)}
    return _Run(walk, entry.with_suffix(""), noted, context)


def _check_used_once(source: StreamedModel, ready: Preparation) -> None:
    """Raise ModelError for a layer that stands in several blocks: its sums are of one alone."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in source.model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for target in ready.targets:
        _, *others = names[source.model.get_submodule(target.name)]
        if others:
            raise ModelError(
                f"{target.name} is used in {others[0]} too, so it cannot be streamed; leave it "
                "out with --exclude, or compress the model in memory"
            )


def _places(source: StreamedModel, snapshots: Snapshots) -> Places:
    sizes, place = source.sizes, snapshots.directory
    assert place is not None
    activations = Activations(place / "activations", sizes.activation_bytes)
    return Places(activations, place / "statistics", sizes.logits_rows, snapshots)


@dataclass(frozen=True)
class _Run:
    """A calibration in parts. noted: further provenance of it, with its key."""

    walk: BlockwiseWalk
    directory: Path
    noted: dict[str, Any]
    context: RunContext

    @property
    def factors(self) -> Path:
        return self.directory / "factors"

    @property
    def snapshots(self) -> Snapshots:
        return self.walk.places.snapshots

    def calibration(self) -> Calibration:
        """Return the calibration; the statistics of layers in files are no longer in it."""
        try:
            return self._calibrated()
        except DamagedFileError as error:
            warnings.warn(f"calibrating again: {error}", stacklevel=2)
            self._forget()
            walk = replace(self.walk, calls=[], probes=[])
            return replace(self, walk=walk)._calibrated()

    def drop_used(self, calibration: Calibration, name: str) -> None:
        """Remove the statistics of a layer's block when all its layers are in files."""
        number = self._block_of[name]
        if all(path.exists() for path in self._files_of(number, calibration)):
            for part in self.walk.part_names(number):
                self.walk.parts.drop(part)
            trim_memory()

    def _calibrated(self) -> Calibration:
        summary = load_if_valid_locally(self.directory / SUMMARY, _read_summary)
        if summary is not None and self._has_statistics(summary):
            return self._with_statistics(summary)
        if summary is not None:
            self._forget()
        for _ in self.context.progress(self.walk.steps(), "calibrating", self.walk.units):
            trim_memory()
        result = self.walk.result()
        result.provenance |= self.noted
        result.provenance = provenance_of(result, silent_layers(result))
        values = {name: getattr(result, name) for name in _SUMMARIZED}
        write_values(self.directory / SUMMARY, values)
        return result

    def _has_statistics(self, summary: Calibration) -> bool:
        """Return whether the layers that are not in files still have their statistics.

        Damaged files count as missing, with a warning.
        """
        files = LayerFiles(self.factors)
        for number in range(self.walk.count + 1):
            if files.missing([path.stem for path in self._files_of(number, summary)]):
                parts = [self.walk.parts.path(name) for name in self.walk.part_names(number)]
                if any(load_if_valid_locally(part, load_calibration) is None for part in parts):
                    return False
                trim_memory()
        return True

    def _with_statistics(self, summary: Calibration) -> Calibration:
        """Return the calibration with the statistics that are left, read on access."""
        parts = [n for i in range(self.walk.count + 1) for n in self.walk.part_names(i)]
        left = [name for name in parts if self.walk.parts.path(name).exists()]
        states = self.walk.parts.union(left, {}).states if left else {}
        statistics = sorted(self.walk.settings.statistics)
        return replace(summary, states={name: states.get(name, {}) for name in statistics})

    def _files_of(self, number: int, calibration: Calibration) -> list[Path]:
        """Return the files of the layers to decompose in a block, or outside of them."""
        files, dense = LayerFiles(self.factors), calibration.provenance["dense"]
        names = [name for name, block in self._block_of.items() if block == number]
        return [files.path(name) for name in names if name not in dense]

    @cached_property
    def _block_of(self) -> dict[str, int]:
        numbers = range(self.walk.count + 1)
        return {target.name: n for n in numbers for target in self.walk.targets_of(n)}

    def _forget(self) -> None:
        """Remove the statistics and their sources."""
        (self.directory / SUMMARY).unlink(missing_ok=True)
        self.snapshots.finish()


_SUMMARIZED = ("groups", "counts", "provenance", "tokens")


def _read_summary(path: Path) -> Calibration:
    """Return a calibration without its statistics."""
    try:
        values = read_values(path)
        groups, counts, provenance = (dict(values[name]) for name in _SUMMARIZED[:3])
        provenance["dense"] = dict(provenance["dense"])
        return Calibration(groups, counts, {}, float(values["tokens"]), provenance)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not a calibration: {error}") from error


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock, waiting with a warning for another run that holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(lock, timeout=0))
        except Timeout:
            warnings.warn(f"waiting for another run on the same model ({lock})", stacklevel=2)
            stack.enter_context(lock_file(lock))
        yield
