"""Tiny models that hold several sizes, for the tests of elastic checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.allocation import NestedSizes
from spectrim.checkpoint import save_compressed
from spectrim.decompositions import decompose_layer
from spectrim.linalg.spectrum import tail_energy
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.linear import get_bias, get_weight
from spectrim.models.targets import find_targets
from spectrim.pipeline.elastic import hold_sizes, plan_elastic
from spectrim.pipeline.recipe import ElasticRecipe, Recipe
from spectrim.pipeline.replace import cast_for_saving
from spectrim.planning import Decomposition
from spectrim.planning.settings import PlanningSettings
from spectrim.statistics import LayerProblem
from tests.tiny_models import tiny_tokenizer


@cache
def elastic_recipe(kind: str, largest: float = 0.9) -> Recipe:
    return Recipe(method="svd", layer=kind, budget=largest, elastic=ElasticRecipe(0.4, largest))


def decompose(
    model: PreTrainedModel, kind: str, largest: float = 0.9
) -> tuple[Decomposition, Recipe]:
    """Plain singular values as losses: no text is read. Experts are split in place."""
    split_experts(model, fused_expert_names(model))
    shapes, factors, curves = {}, {}, {}
    for target in find_targets(model):
        module: nn.Module = model.get_submodule(target.name)
        weight = get_weight(module).detach()
        problem = LayerProblem(target.name, weight, get_bias(module), None)
        shapes[target.name] = target.shape
        factors[target.name] = decompose_layer("svd", problem, None)
        curves[target.name] = tail_energy(factors[target.name].spectrum)
    return Decomposition("svd", shapes, factors, curves), elastic_recipe(kind, largest)


@dataclass(frozen=True)
class Elastic:
    """A model with all of its sizes: dense, in memory and on disk."""

    original: PreTrainedModel
    decomposition: Decomposition
    sizes: NestedSizes
    settings: PlanningSettings
    held: PreTrainedModel
    directory: Path

    @classmethod
    def make(
        cls,
        model: PreTrainedModel,
        kind: str,
        directory: Path,
        dtype: torch.dtype | None = None,
        largest: float = 0.9,
    ) -> Elastic:
        decomposition, recipe = decompose(model, kind, largest)
        sizes, plan = plan_elastic(decomposition, recipe)
        held = hold_sizes(model, decomposition, sizes, plan)
        held = held if dtype is None else cast_for_saving(held, dtype)
        config = held.config.quantization_config
        save_compressed(held, tiny_tokenizer(), directory, config)
        return cls(model, decomposition, sizes, recipe.planning, held, directory)

    def stored(self, name: str) -> int:
        """Return the bytes of a layer's components, in float32."""
        layer = self.sizes.layers[name]
        return 4 * layer.components * sum(layer.shape)

    def dense(self, name: str) -> int:
        """Return the bytes of a layer's dense weight, in float32."""
        out, inner = self.sizes.layers[name].shape
        return 4 * out * inner
