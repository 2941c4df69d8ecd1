"""Statistics from a model and a recipe, in one pass or averaged along the path to the result.

The loss increase of a change D of the weights is a quadratic form in the Hessian averaged
between the original and the changed model,

    L(W + D) - L(W) - <grad, D> = 1/2 D^T ( 2 * integral_0^1 (1 - t) H(W + t D) dt ) D,

not in the Hessian at the original alone. `HessianAveragingRecipe` adds a second, shorter pass
on the model cut to a given budget and mixes the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spectrim.calibration import CalibrationSettings
from spectrim.calibration.distributed import (
    all_reduce,
    missing_passes,
    raise_unless_sharded,
    run_idle_passes,
    shard_settings,
    start_shard,
)
from spectrim.calibration.in_memory import calibrate_steps, per_sequence
from spectrim.calibration.leverage import leverage_sample, load_sample, save_sample
from spectrim.data import (
    TokenBlocks,
)
from spectrim.data.labeled import LabeledRows
from spectrim.errors import InputError
from spectrim.models.fingerprint import model_fingerprint
from spectrim.models.linear import get_weight
from spectrim.models.targets import Target
from spectrim.pipeline.calibration_defaults import (
    calibration_settings,
    few_tokens_note,
)
from spectrim.pipeline.decompose import decompose
from spectrim.pipeline.inputs import (
    calibration_blocks,
    calibration_key,
    calibration_rows,
    prepare,
)
from spectrim.pipeline.passes import cut_model, model_for_passes
from spectrim.pipeline.recipe import Recipe
from spectrim.planning import make_plan
from spectrim.runtime import distributed
from spectrim.runtime.cache import load_if_valid, store
from spectrim.runtime.context import RunContext
from spectrim.runtime.snapshots import Snapshots
from spectrim.runtime.warning_log import recorded_warnings, repeat_warnings
from spectrim.statistics import (
    STATISTICS,
    Calibration,
    concat,
    load_calibration,
    open_calibration,
    save_calibration,
    select,
    stored_calibration,
)

INPUTS, GRADIENTS = "calibrating inputs", "calibrating gradients"


@torch.inference_mode(False)
@torch.enable_grad()
def calibrate(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe | None = None,
    context: RunContext | None = None,
) -> Calibration:
    """Run the model over the recipe's tokens and sum the statistics it needs.

    Fused experts of the model are split in place. An interrupted run resumes from its last
    snapshot. Raises InputError for unusable data, ModelError for unusable weights.
    """
    recipe = recipe or Recipe()
    run = _run_for(model, tokenizer, recipe, context or RunContext()).as_kept()
    first = run.collected()
    if not recipe.averages_hessian:
        return first
    second = _at_path_budget(run, first, recipe)
    result = first.interpolate(second, recipe.hessian_averaging.weight)
    result.provenance |= {
        "path": asdict(recipe.hessian_averaging),
        "key": second.provenance["key"],
    }
    return result


def gather(
    model: PreTrainedModel,
    tokenizer: Any,
    recipes: Sequence[Recipe],
    context: RunContext,
) -> None:
    """Collect the statistics of all `recipes` in one pass over the tokens, into the cache.

    `calibrate` with any of them then finds its own. Covariances are in full for all if one of
    them needs that. Recipes with other tokens or layers take a pass of their own, and so do
    averaged Hessians.

    Raises:
        InputError: the cache stores nothing; and all that `calibrate` raises.
    """
    if context.cache.root is None:
        raise InputError("statistics for several recipes need a cache with a directory")
    alike: dict[str, list[_Run]] = {}
    fingerprint = None
    for recipe in recipes:
        run = _run_for(model, tokenizer, recipe, context, fingerprint=fingerprint)
        fingerprint = run.fingerprint
        text = json.dumps(run.key() | {"statistics": None, "wide": None}, sort_keys=True)
        alike.setdefault(text, []).append(run)
    for runs in alike.values():
        statistics = {name for run in runs for name in run.settings.statistics}
        wide = min(run.settings.wide for run in runs)  # "full" before "projected"
        settings = replace(runs[0].settings, statistics=tuple(sorted(statistics)), wide=wide)
        replace(runs[0], settings=settings).as_kept().collected()


def _run_for(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    context: RunContext,
    *,
    fingerprint: str | None = None,
) -> _Run:
    ready = prepare(model, recipe, context.cache)
    blocks = calibration_rows(model, tokenizer, recipe, cache=context.cache)
    settings = calibration_settings(model, ready.targets, blocks, recipe)
    fingerprint = fingerprint or model_fingerprint(model)
    noted = {"dense": ready.dense, **few_tokens_note(blocks, ready.targets)}
    run = _Run(model, ready.targets, blocks, settings, context, fingerprint, noted)
    if recipe.calibration.sampling == "random":
        return run
    factor = recipe.calibration.candidates
    return run.sampled(calibration_blocks(model, tokenizer, recipe, factor, context.cache))


@dataclass(frozen=True)
class _Run:
    """The inputs of one pass over the tokens, or, with `candidates`, of one over each text.

    candidates: sequences that `blocks` were chosen from, for statistics without gradients.
    """

    model: PreTrainedModel
    targets: list[Target]
    blocks: TokenBlocks | LabeledRows
    settings: CalibrationSettings
    context: RunContext
    fingerprint: str
    noted: dict[str, Any] = field(default_factory=dict)
    candidates: TokenBlocks | None = None

    def sampled(self, candidates: TokenBlocks) -> _Run:
        """Return the run on as many candidates as it has sequences, chosen by leverage."""
        if isinstance(self.blocks, LabeledRows) or len(candidates) <= len(self.blocks):
            return self
        key = {
            "model": self.fingerprint,
            "data": candidates.fingerprint,
            "leverage": [len(self.blocks), self.settings.seed],
        }
        path = self.context.cache.path("sample", key)
        sample = load_if_valid(path, load_sample)
        if sample is None:
            size, seed = self.settings.tokens_per_batch, self.settings.seed
            sample = leverage_sample(self.model, candidates, len(self.blocks), size, seed)
            store(path, partial(save_sample, sample))
        return replace(self, blocks=candidates.weighted(*sample), candidates=candidates)

    def collected(self) -> Calibration:
        """Return all statistics; with candidates, those without gradients from all of these."""
        if self.candidates is None:
            return self.gathered("calibrating", self.key())
        needs = {n: STATISTICS.get(n).NEEDS_GRADIENT for n in self.settings.statistics}
        inputs = self._part(self.candidates, [n for n in needs if not needs[n]])
        gradients = self._part(self.blocks, [n for n in needs if needs[n]])
        parts = [
            part.gathered(what, part.key())
            for part, what in ((inputs, INPUTS), (gradients, GRADIENTS))
            if part.settings.statistics
        ]
        states = {name: state for part in parts for name, state in part.states.items()}
        provenance = parts[-1].provenance | {"key": [p.provenance["key"] for p in parts]}
        return replace(parts[0], states=dict(sorted(states.items())), provenance=provenance)

    def _part(self, blocks: TokenBlocks | LabeledRows, statistics: list[str]) -> _Run:
        settings = replace(self.settings, statistics=tuple(statistics))
        return replace(self, blocks=blocks, settings=settings, candidates=None).as_kept()

    def as_kept(self) -> _Run:
        """Return the run with covariances in full if only those are in the cache."""
        if self.candidates is not None:
            return self
        full = replace(self, settings=replace(self.settings, wide="full"))
        use = self.settings.wide != "full" and not self._is_kept() and full._is_kept()
        return full if distributed.all_true(use) else self

    def _is_kept(self) -> bool:
        paths = [self._path(self.key(), (name,)) for name in self.settings.statistics]
        return all(path is not None and path.exists() for path in paths)

    def gathered(
        self,
        what: str,
        key: dict[str, Any],
        changed: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Calibration:
        """Return each statistic from the cache, and the missing ones from one pass.

        The cache stores them one by one; the pass is over the `changed` model, if given.
        """
        found = {name: self._kept(key, name) for name in self.settings.statistics}
        parts = [part for part in found.values() if part is not None]
        repeat_warnings(text for part in parts for text in part.provenance.get("warnings", []))
        missing = tuple(name for name, part in found.items() if part is None)
        if missing:
            ready = changed or partial(model_for_passes, self.model, self.context.fsdp)
            with ready() as model:
                parts.append(replace(self, model=model)._once(what, key, missing))
        result = concat(parts)
        result.provenance |= {"key": key, **self.noted}
        self._snapshots(key).finish()
        return result

    def _kept(self, key: dict[str, Any], statistic: str) -> Calibration | None:
        return load_if_valid(self._path(key, (statistic,)), open_calibration)

    def _once(self, what: str, key: dict[str, Any], missing: tuple[str, ...]) -> Calibration:
        """Sum the missing statistics in one pass and store them in the cache under `key`.

        Stored ones are dropped from memory. A run that was interrupted between storing one
        statistic and the next resumes from all its sums.
        """
        snapshots = self._snapshots(key)
        resume = self._resumed(snapshots, missing)
        names = missing if resume is None else tuple(resume.states)
        settings = replace(self.settings, statistics=names)
        with recorded_warnings() as given:
            result = replace(self, settings=settings)._stored_steps(snapshots, what, resume)
        if given:
            result.provenance["warnings"] = given
        paths = [self._path(key, (name,)) for name in missing]
        for name, path in zip(missing, paths, strict=True):
            store(path, partial(save_calibration, select(result, name)))
        stored = [path for path in paths if path is not None and path.exists()]
        return stored_calibration(stored, result.provenance) if stored == paths else result

    def _snapshots(self, key: dict[str, Any]) -> Snapshots:
        return Snapshots(self._path(key, self.settings.statistics))

    @property
    def _sums(self) -> str:
        """Return the snapshot name of the running sums; for several processes by batch size."""
        if distributed.num_processes() == 1:
            return "sums.safetensors"
        size = shard_settings(self.blocks, self.settings).tokens_per_batch
        return f"sums-by-{size}.safetensors"

    def _path(self, key: dict[str, Any], statistics: tuple[str, ...]) -> Path | None:
        return self.context.cache.path("calibration", key | {"statistics": list(statistics)})

    def key(self) -> dict[str, Any]:
        return calibration_key(self.fingerprint, self.blocks, self.settings, self.targets)

    def _resumed(self, snapshots: Snapshots, missing: tuple[str, ...]) -> Calibration | None:
        """Return stored sums of all missing statistics, in every process or in none."""
        resume = snapshots.load(self._sums, load_calibration)
        if resume is not None and not set(missing) <= set(resume.states):
            resume = None
        states = None if resume is None else sorted(resume.states)
        same = all(each == states for each in distributed.all_gather(states))
        return resume if same else None

    def _stored_steps(
        self, snapshots: Snapshots, what: str, resume: Calibration | None
    ) -> Calibration:
        """Sum all batches, storing the running sums now and then.

        Several processes sum their own batches; the sums are added at the end.
        """
        settings = shard_settings(self.blocks, self.settings)
        given = self.model, self.targets, self.blocks, settings
        with raise_unless_sharded(self.model):
            result = resume or start_shard(*given)
            missing = missing_passes(self.model, self.blocks, settings, result)
            steps = calibrate_steps(*given, result)
            sequences = per_sequence(steps)
            for result in self.context.progress(sequences, what, len(self.blocks)):
                if snapshots.due():
                    snapshots.save(self._sums, partial(save_calibration, result))
        run_idle_passes(*given, missing)
        return all_reduce(result, len(self.blocks))


def _at_path_budget(run: _Run, first: Calibration, recipe: Recipe) -> Calibration:
    """Return statistics of the model cut to the averaging budget, on every n-th sequence."""
    key = run.key() | {
        **({} if run.candidates is None else {"candidates": run.candidates.fingerprint}),
        "path": asdict(recipe.hessian_averaging),
        "method": [recipe.method, recipe.method_options],
        **recipe.sharing_key,
    }
    step = max(1, round(1 / recipe.hessian_averaging.data_fraction))
    originals = {t.name: get_weight(run.model.get_submodule(t.name)) for t in run.targets}
    settings = replace(run.settings, originals=originals)
    fewer = replace(run, blocks=run.blocks.every(step), settings=settings)
    what = "averaging the Hessian"
    layers = Snapshots(run.context.cache.path("path", key))
    second = fewer.gathered(what, key, lambda: _cut(run, first, recipe, layers))
    layers.finish()
    return second


@contextmanager
def _cut(run: _Run, first: Calibration, recipe: Recipe, layers: Snapshots) -> Iterator[Any]:
    """Yield the model cut to the budget that the Hessian is averaged at."""
    decomposition = decompose(run.model, first, recipe, layers, run.context)
    plan = make_plan(
        decomposition, recipe.planning.for_probing(recipe.hessian_averaging.at_budget)
    )
    with cut_model(run.model, decomposition, plan, run.context.fsdp) as model:
        yield model
