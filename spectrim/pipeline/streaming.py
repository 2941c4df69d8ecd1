"""Compression of a model larger than memory: one part of it, one layer at a time.

    shards -> statistics, a file per block -> factors, a file per layer -> plan -> shards

Each file is read on access; statistics are deleted as soon as their block is decomposed. An
interrupted run resumes from the files.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import Tensor

from spectrim.calibration.blockwise import BlockwiseWalk, Places
from spectrim.checkpoint import SpectrimConfig
from spectrim.checkpoint.save_sharded import OffloadedCheckpoint
from spectrim.errors import DamagedFileError
from spectrim.models.experts import split_expert_names
from spectrim.models.fingerprint import architecture_fingerprint, files_fingerprint
from spectrim.models.linear import get_bias
from spectrim.models.offload import Activations
from spectrim.models.targets import find_targets
from spectrim.pipeline import compatibility
from spectrim.pipeline.calibrate import calibration_blocks
from spectrim.pipeline.calibration_defaults import calibration_settings, few_tokens_note
from spectrim.pipeline.decompose import (
    layers_with_signal,
    make_solver,
    provenance_of,
    warn_of_few_tokens,
)
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.replace import added_biases, check_plan, config_for, factored_layer
from spectrim.planning import Decomposition, Plan
from spectrim.planning.lazy_decomposition import save_layer, stored_decomposition
from spectrim.planning.solver import layer_problems
from spectrim.runtime.cache import Cache, load_if_valid_locally
from spectrim.runtime.context import ProgressBar, RunContext, silent
from spectrim.runtime.files import lock_file, read_tensors, read_values, write_values
from spectrim.runtime.memory import trim_memory
from spectrim.statistics import load_calibration


@dataclass(frozen=True)
class StreamSizes:
    """The sizes of a streamed run.

    They are sequences per batch, sequences whose logits are in memory at once, and bytes of
    memory for activations between blocks; 0 stores them all in files.
    """

    batch_rows: int
    logits_rows: int
    activation_bytes: int


def check_streamable(recipe: Recipe) -> None:
    """Raise InputError for a recipe with a step that needs the whole model."""
    compatibility.check(recipe, compatibility.STREAMING)


def for_streaming(recipe: Recipe) -> Recipe:
    """Return the recipe without probed curves and Hessian averaging.

    These need the whole model. Raises InputError as `check_streamable`.
    """
    check_streamable(recipe)
    return recipe.with_changes(
        probe=replace(recipe.probe, per_layer=False, joint=False),
        hessian_averaging=replace(recipe.hessian_averaging, weight=0.0),
    )


@contextmanager
def decompose_streamed(
    opened: OffloadedCheckpoint, recipe: Recipe, sizes: StreamSizes, context: RunContext
) -> Iterator[Decomposition]:
    """Yield what `factorize` returns, up to rounding, with factors in files.

    The cache stores them for other budgets. Raises InputError for a recipe that cannot be
    streamed, and what `factorize` raises.
    """
    recipe = for_streaming(recipe)
    model = opened.streamed.model
    targets = find_targets(model, recipe.include, recipe.exclude)
    blocks = calibration_blocks(model, opened.tokenizer, recipe)
    settings = replace(
        calibration_settings(model, targets, blocks, recipe),
        tokens_per_batch=sizes.batch_rows * blocks.ids.shape[1],
    )
    key = {
        "model": [architecture_fingerprint(model), files_fingerprint(opened.files)],
        "data": blocks.fingerprint,
        "statistics": list(settings.statistics),
        "labels": settings.label_key,
        **settings.format_key,
        "layers": [target.name for target in targets],
        "method": [recipe.method, recipe.method_options],
        "rows": sizes.batch_rows,
    }
    with _directory(context.cache, key) as directory:
        places = Places(
            Activations(directory / "activations", sizes.activation_bytes),
            directory / "statistics",
            sizes.logits_rows,
        )
        walk = BlockwiseWalk(opened.streamed, targets, blocks, settings, places)
        noted = few_tokens_note(blocks, targets)
        run = _Run(opened, recipe, walk, directory, context.progress, noted)
        yield run.decomposition(key)


@dataclass(frozen=True)
class _Run:
    opened: OffloadedCheckpoint
    recipe: Recipe
    walk: BlockwiseWalk
    directory: Path
    track: ProgressBar = silent
    noted: dict[str, Any] = field(default_factory=dict)

    def decomposition(self, key: dict[str, Any]) -> Decomposition:
        try:
            summary = self._calibrated(key)
        except DamagedFileError as error:
            warnings.warn(f"calibrating again: {error}", stacklevel=2)
            self._forget()
            walk = replace(self.walk, calls=[], probes=[])
            summary = replace(self, walk=walk)._calibrated(key)
        numbers = range(self.walk.count + 1)
        for number in self.track(numbers, "decomposing", len(numbers)):
            self._decompose_part(number, summary)
            trim_memory()
        shutil.rmtree(self.directory / "statistics", ignore_errors=True)
        return stored_decomposition([self._layer_file(name) for name in summary["layers"]])

    def _calibrated(self, key: dict[str, Any]) -> dict[str, Any]:
        """Sum the statistics in files, by block; return layers with signal and provenance."""
        path = self.directory / "calibrated.json"
        summary = load_if_valid_locally(path, _read_summary)
        if summary is not None and self._can_resume(summary):
            return summary
        if summary is not None:
            self._forget()
        for _ in self.track(self.walk.steps(), "calibrating", self.walk.units):
            trim_memory()
        calibration = self.walk.result()
        names = layers_with_signal(calibration)
        warn_of_few_tokens(self.opened.streamed.model, calibration, names)
        summary = {
            "layers": names,
            "provenance": provenance_of(calibration) | {"key": key} | self.noted,
        }
        write_values(path, summary)
        return summary

    def _can_resume(self, summary: dict[str, Any]) -> bool:
        """Return whether the layers that are not decomposed still have their statistics.

        Damaged files count as missing, with a warning.
        """
        for number in range(self.walk.count + 1):
            if self._missing(number, summary):
                parts = [self.walk.parts.path(name) for name in self.walk.part_names(number)]
                if any(load_if_valid_locally(part, load_calibration) is None for part in parts):
                    return False
                trim_memory()
        return True

    def _missing(self, number: int, summary: dict[str, Any]) -> list[str]:
        """Return the layers of a block to decompose, and remove damaged files."""
        wanted = set(summary["layers"])
        names = [t.name for t in self.walk.targets_of(number) if t.name in wanted]
        missing = []
        for name in names:
            if load_if_valid_locally(self._layer_file(name), _verify) is None:
                self._layer_file(name).unlink(missing_ok=True)
                missing.append(name)
        return missing

    def _forget(self) -> None:
        """Remove the statistics and their sources."""
        (self.directory / "calibrated.json").unlink(missing_ok=True)
        for name in ("statistics", "activations"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def _decompose_part(self, number: int, summary: dict[str, Any]) -> None:
        if not (names := self._missing(number, summary)):
            return
        parts = self.walk.part_names(number)
        calibration = self.walk.parts.union(parts, summary["provenance"])
        solver = make_solver(self.recipe, calibration.states, summary["provenance"])
        groups = [(name,) for name in names]
        for problems in layer_problems(self.opened.streamed, calibration, groups):
            save_layer(solver.solve(problems), self._layer_file(problems[0].name))
        for part in parts:
            self.walk.parts.drop(part)

    def _layer_file(self, name: str) -> Path:
        return self.directory / "factors" / f"{name}.safetensors"


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = read_values(path)
        return {"layers": list(summary["layers"]), "provenance": dict(summary["provenance"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not a calibration: {error}") from error


def _verify(path: Path) -> bool:
    read_tensors(path)
    return True


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


@contextmanager
def _directory(cache: Cache, key: dict[str, Any]) -> Iterator[Path]:
    """Yield a directory in the cache, locked for this run, or a temporary one."""
    path = cache.path("streamed", key)
    if path is not None:
        with _alone(path.with_suffix(".lock")):
            yield path.with_suffix("")
        return
    with tempfile.TemporaryDirectory(prefix="spectrim-") as name:
        yield Path(name)


@dataclass(frozen=True)
class CompressedParts:
    """A callable that returns the tensors of one part in the compressed checkpoint."""

    opened: OffloadedCheckpoint
    decomposition: Decomposition
    plan: Plan
    dtype: torch.dtype

    def config(self) -> SpectrimConfig:
        """Return the config. Raises CheckpointError for a plan of another model."""
        model = self.opened.streamed.model
        check_plan(model, self.plan)
        added = added_biases(model, self.decomposition, self.plan)
        return config_for(self.plan, split_expert_names(model), self._untied, added)

    @property
    def _untied(self) -> bool:
        """Return whether a tied head is compressed and so gets its own weight."""
        model: Any = self.opened.streamed.model
        head = model.get_output_embeddings()
        tied = bool(getattr(model.config, "tie_word_embeddings", False))
        names = [name for name, module in model.named_modules() if module is head]
        return tied and head is not None and any(name in self.plan.ranks for name in names)

    def __call__(self, name: str) -> dict[str, Tensor]:
        streamed = self.opened.streamed
        trim_memory()
        with streamed.resident(name) as module:
            layers = {
                full: module.get_submodule(full[len(name) + 1 :]) if full != name else module
                for full in self.plan.ranks
                if streamed.part_of(full) == name
            }
            replaced = tuple(layer + "." for layer in layers)
            prefix = f"{name}." if name else ""
            state = {prefix + k: t for k, t in streamed.own_state(name).items()}
            tensors = {
                key: self._stored(tensor)
                for key, tensor in state.items()
                if not key.startswith(replaced) and streamed.tied_to(key) is None
            }
            for full, layer in layers.items():
                tensors |= self._factored(full, layer)
        return tensors

    def _factored(self, name: str, layer: torch.nn.Module) -> dict[str, Tensor]:
        made = factored_layer(self.decomposition, self.plan, name, get_bias(layer))
        made.to(dtype=self.opened.streamed.dtype).to(dtype=self.dtype)
        return {
            f"{name}.{key}": t.detach().contiguous() for key, t in made.state_dict().items()
        }

    def _stored(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).contiguous() if tensor.is_floating_point() else tensor
