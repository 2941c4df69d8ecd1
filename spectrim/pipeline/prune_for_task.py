"""A smaller model for a task, from bases that are pruned while they are tuned.

    bases -> spectral layers -> (score, drop, tune) x events -> merge -> factors of the budget

Fine-tuning of the factors afterward is a refinement like any other (`finetune`).
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.checkpoint import SpectrimConfig, attach_config
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import InputError
from spectrim.layers import layer_class
from spectrim.linalg.truncated import Factors
from spectrim.models.experts import split_expert_names
from spectrim.models.fingerprint import model_fingerprint
from spectrim.models.linear import get_bias, set_weight
from spectrim.models.replace import replace_layer
from spectrim.models.source import ResidentModel
from spectrim.models.targets import Target
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.decompose import decompose, make_solver, versions
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.recipe import Recipe
from spectrim.pipeline.replace import shared_copy, untie_head, without_layers
from spectrim.pipeline.tasks import load_task_rows, sample_rows
from spectrim.planning import LayerPlan, Plan
from spectrim.planning.solver import decompose_problems, layer_problems
from spectrim.pruning import (
    LayerCost,
    Objective,
    Problem,
    PruningOptions,
    PruningState,
    SpectralLinear,
    run_pruning,
    thin_svd,
)
from spectrim.runtime.context import RunContext
from spectrim.runtime.snapshots import Snapshots


@dataclass(frozen=True)
class PrunedModel:
    """The smaller model in float32, its ranks, and the log of the prunings."""

    model: PreTrainedModel
    plan: Plan
    state: PruningState

    def prune_steps(self) -> str:
        """Return one JSON object per pruning, in order."""
        return "".join(json.dumps(asdict(event)) + "\n" for event in self.state.prune_steps)


def prune_for_task(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    context: RunContext | None = None,
) -> PrunedModel:
    """Prune bases of `model` (float32) for the recipe's task.

    Python examples become a task by `spectrim.data.tasks.write_task`. An interrupted run
    resumes from the cache. The original is not changed, except that fused experts are split.
    Raises InputError for a task that cannot be read and a budget that cannot be met,
    NumericalError for a loss that is not finite.
    """
    _check(recipe)
    assert recipe.pruning is not None
    assert recipe.task is not None
    context = context or RunContext()
    rows = load_task_rows(model, tokenizer, recipe.task)
    spectral, layers = spectral_copy(model, tokenizer, recipe, context)
    objectives = _objectives(rows, recipe.pruning)
    costs = layer_costs(layers, recipe)
    problem = Problem(spectral, layers, *objectives, costs, recipe.budget)
    key = _key(model, recipe, rows.fingerprint, list(layers))
    state = run_pruning(problem, recipe.pruning, key, context)
    _snapshots(model, recipe, context).finish()
    ranks = _merge(model, problem, recipe)
    plan = _plan(problem, recipe, ranks, rows.fingerprint)
    _mark(model, spectral, plan)
    return PrunedModel(spectral, plan, state)


def _check(recipe: Recipe) -> None:
    """Raise InputError for a recipe that cannot prune bases."""
    if recipe.pruning is None or recipe.task is None:
        raise InputError("a task to prune for is missing: give --task FILE.jsonl")


def _bases(
    model: PreTrainedModel,
    tokenizer: Any,
    recipe: Recipe,
    targets: list[Target],
    context: RunContext,
) -> dict[str, Factors]:
    """Return full-rank factors by the recipe's method, calibrated on the task if needed."""
    snapshots = _snapshots(model, recipe, context)
    if DECOMPOSITIONS.get(recipe.method).REQUIRES:
        calibration = calibrate(model, tokenizer, recipe, context)
        factors = decompose(model, calibration, recipe, snapshots, context).factors
    else:
        names = [(target.name,) for target in targets]
        problems = layer_problems(ResidentModel(model), None, names)
        shown = context.progress(problems, "decomposing", len(targets))
        factors = decompose_problems(shown, make_solver(recipe, (), {}), snapshots).factors
    if any(found.bias_shift is not None for found in factors.values()):
        raise InputError(
            f"method '{recipe.method}' absorbs cut terms in biases, so bases cannot be "
            "pruned one by one; choose svd, svd_llm or obd"
        )
    return factors


def _snapshots(model: PreTrainedModel, recipe: Recipe, context: RunContext) -> Snapshots:
    """Return the store of the bases until the pruning that starts from them is finished."""
    key = {
        "model": model_fingerprint(model),
        "task": None if recipe.task is None else asdict(recipe.task),
        "layers": [recipe.include, recipe.exclude],
        "bases": [recipe.method, recipe.method_options, asdict(recipe.calibration)],
    }
    return Snapshots(context.cache.path("bases", key))


def _objectives(rows: Any, options: PruningOptions) -> tuple[Objective, Objective]:
    """Return the objectives for training and for scoring."""
    size = options.batch_size
    scoring = sample_rows(rows, options.scoring_examples, options.seed)
    return Objective(rows, size), Objective(scoring, size)


def spectral_copy(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe, context: RunContext | None = None
) -> tuple[PreTrainedModel, dict[str, SpectralLinear]]:
    """Return a copy of `model` with spectral layers on the recipe's bases, and these by name.

    Tensors that do not change are shared with the original. Raises InputError for a method
    whose terms cannot be dropped one by one.
    """
    context = context or RunContext()
    targets = prepare(model, recipe, context.cache).targets
    factors = _bases(model, tokenizer, recipe, targets, context)
    spectral = shared_copy(model)
    spectral.eval()
    untie_head(spectral, factors)
    layers = {}
    for name, terms in factors.items():
        layers[name] = SpectralLinear.from_factors(
            terms, get_bias(spectral.get_submodule(name))
        )
        _put(spectral, name, layers[name])
    return spectral, layers


def layer_costs(layers: dict[str, SpectralLinear], recipe: Recipe) -> dict[str, LayerCost]:
    """Return the cost of the layers' bases in the recipe's kind of layer."""
    assert recipe.pruning is not None
    kind = layer_class(recipe.layer)
    return {
        name: LayerCost(
            partial(kind.cost, *layer.shape),
            layer.shape[0] * layer.shape[1],
            recipe.pruning.extra_rank_for(layer.shape),
        )
        for name, layer in layers.items()
    }


def _put(model: nn.Module, name: str, layer: SpectralLinear) -> None:
    old = next(model.get_submodule(name).parameters())
    layer.to(device=old.device)
    model.set_submodule(name, layer.eval())


def _key(
    model: PreTrainedModel, recipe: Recipe, fingerprint: str, layers: list[str]
) -> dict[str, Any]:
    assert recipe.pruning is not None
    return {
        "model": model_fingerprint(model),
        "data": fingerprint,
        "layers": layers,
        "bases": [recipe.method, recipe.method_options, asdict(recipe.calibration)],
        "selection": asdict(recipe.pruning),
        "target": [recipe.layer, recipe.budget],
    }


@torch.no_grad()
def _merge(model: PreTrainedModel, problem: Problem, recipe: Recipe) -> dict[str, int | None]:
    """Replace the spectral layers by stored ones; return ranks, None for dense ones."""
    assert recipe.pruning is not None
    kind = layer_class(recipe.layer)
    ranks: dict[str, int | None] = {}
    for name, layer in problem.layers.items():
        left, right = layer.fold()
        if problem.costs[name].is_dense(layer.bases):
            dense = copy.deepcopy(model.get_submodule(name))
            set_weight(dense, left @ right)
            problem.model.set_submodule(name, dense)
            ranks[name] = None
            continue
        thin = thin_svd(left, right, recipe.pruning.svd_cutoff)
        ranks[name] = len(thin.spectrum)
        replace_layer(problem.model, name, kind.from_factors(thin.left, thin.right, layer.bias))
    return ranks


def _plan(
    problem: Problem, recipe: Recipe, ranks: dict[str, int | None], fingerprint: str
) -> Plan:
    assert recipe.pruning is not None
    layers = {
        name: LayerPlan(layer.shape, ranks[name]) for name, layer in problem.layers.items()
    }
    kind = layer_class(recipe.layer)
    spent = sum(
        layer.shape[0] * layer.shape[1]
        if layer.rank is None
        else kind.cost(*layer.shape, layer.rank)
        for layer in layers.values()
    )
    return Plan(
        method=recipe.method,
        allocation=f"pruning by {recipe.pruning.importance}",
        layer=recipe.layer,
        budget=recipe.budget,
        kept=spent / problem.dense_weights,
        predicted_loss=None,
        layers=layers,
        provenance={"data": fingerprint, "versions": versions()},
    )


def _mark(original: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> None:
    """Record the compression in the model's config."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    config = SpectrimConfig(
        layers={n: {"kind": plan.layer, "rank": r} for n, r in plan.ranks.items()},
        split_experts=split_expert_names(model),
        untied=_tied(original) and not _tied(model),
        provenance={"plan": without_layers(plan), "versions": versions()},
    )
    attach_config(model, config)


def _tied(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "tie_word_embeddings", False))
