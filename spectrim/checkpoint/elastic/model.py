"""A model cut from an elastic checkpoint: filled once it is built, and resized in place.

The loaded model is an ordinary compressed one, which saves, exports and trains as such. It
remembers its files, so that another size can be put in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.config_entries import COMPENSATED
from spectrim.checkpoint.elastic.entry import check_elastic, rounding_of, sizes_of
from spectrim.checkpoint.elastic.reading import ElasticFiles
from spectrim.checkpoint.elastic.stored import BUDGET
from spectrim.checkpoint.empty_layers import module_at, names_inside
from spectrim.errors import CheckpointError, InputError
from spectrim.layers import ElasticLinear, FactoredLinear
from spectrim.layers.lowrank import LowRankLinear
from spectrim.layers.quantized import (
    COLUMN_QUANTIZER,
    ELASTIC_PARTS,
    ROW_QUANTIZER,
    cut_quantized,
    held_by,
)
from spectrim.layers.quantized.rtn import Options
from spectrim.models.linear import get_shape, is_linear, set_weight
from spectrim.models.replace import replace_layer

_SOURCE = "_spectrim_elastic"


@dataclass
class ElasticModel:
    """The source of a loaded model.

    Attributes:
        whole: the config of all sizes.
        config: of the size that the model has.
        files: the tensors.
        local: the model's own name of each elastic layer that it has.
        dense: the class of each of them in the dense model.
    """

    whole: SpectrimConfig
    config: SpectrimConfig
    files: ElasticFiles
    local: Mapping[str, str]
    dense: Mapping[str, type[nn.Module]]

    @classmethod
    def of(
        cls, model: PreTrainedModel, whole: SpectrimConfig, files: Iterable[str | Path]
    ) -> ElasticModel:
        """Choose the size that the model's config asks for; the field is then removed.

        Raises InputError for a size outside the range, CheckpointError for unusable files.
        """
        budget = vars(model.config).pop(BUDGET, None)
        if isinstance(budget, bool) or not isinstance(budget, int | float | None):
            raise InputError(f"{BUDGET} is {budget!r}, expected a fraction of the weights")
        check_elastic(whole.elastic)
        config, sizes = cut_config(whole, budget), sizes_of(whole.elastic)
        local = {full: own for own, full in names_inside(model, list(sizes.layers)).items()}
        rounding = rounding_of(whole.elastic)
        cut = {n for n, layer in sizes.layers.items() if layer.components or rounding}
        stored = {n: own for n, own in local.items() if n in cut}
        modules = dict(model.named_modules())  # experts are not split yet
        dense = {name: type(modules.get(own, nn.Linear(1, 1))) for name, own in stored.items()}
        return cls(whole, config, ElasticFiles.of(files, sizes, rounding), stored, dense)

    def prepare(self, model: Any) -> None:
        """Tell transformers which tensors it neither finds nor uses; in place.

        `model` holds empty factored layers already. Raises CheckpointError where it has no such
        layer, or one of another shape.
        """
        unread, unfound = set(), set()
        for name, own in self.local.items():
            self._check_shape(name, module_at(model, own))
            unread |= {
                _pattern(own, part)
                for part in ("components", rf"({'|'.join(ELASTIC_PARTS)})\..*")
            }
            if name in self.config.layers:
                unread |= {_pattern(own, "weight"), _pattern(own, "bias")}
                unfound.add(_pattern(own, ".*"))
                _mark_unfilled(model.get_submodule(own))
            elif not self.files.sizes.layers[name].has_dense:
                unfound.add(_pattern(own, "weight"))
        for field, patterns in (("unexpected", unread), ("missing", unfound)):
            attribute = f"_keys_to_ignore_on_load_{field}"
            setattr(model, attribute, set(getattr(model, attribute) or ()) | patterns)

    def _check_shape(self, name: str, module: nn.Module) -> None:
        expected = self.files.sizes.layers[name].shape
        if is_linear(module):
            shape = get_shape(module)
        else:
            shape = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
        if shape != expected:
            raise CheckpointError(
                f"layer {name} is {shape} in the model, {expected} in the config"
            )

    def fill(self, model: nn.Module) -> None:
        """Put the values of this size into the layers, in place.

        Raises CheckpointError for tensors that are missing, misshapen or offloaded to disk.
        """
        for name, own in self.local.items():
            module = model.get_submodule(own)
            if any(parameter.is_meta for parameter in module.parameters()):
                raise CheckpointError(
                    f"{own} is offloaded to disk, where an elastic checkpoint cannot be cut; "
                    "write the size first by `spectrim export --budget`"
                )
            if (entry := self.config.layers.get(name)) is not None:
                vars(module).pop("filled", None)
                rank = None if entry["kind"] == COMPENSATED else entry["rank"]
                module.load_state_dict(self.files.layer(name, rank).state_dict())
            elif not self.files.sizes.layers[name].has_dense:
                set_weight(module, self.files.dense(name))
        setattr(model, _SOURCE, self)

    def resize(self, model: PreTrainedModel, budget: float) -> None:
        """Give the layers other ranks in place. Raises InputError."""
        config = cut_config(self.whole, budget)
        for name, own in self.local.items():
            old, entry = model.get_submodule(own), config.layers.get(name)
            kept = entry is not None and entry["kind"] != COMPENSATED
            rank = entry["rank"] if entry is not None and kept else None
            if rank != (old.rank if isinstance(old, FactoredLinear) else None):
                replace_layer(model, own, self._resized(name, old, rank))
        self.config = config
        model.config.quantization_config = config

    def _resized(self, name: str, old: nn.Module, rank: int | None) -> nn.Module:
        """Return the layer at another rank: a part of `old` where that holds it, else read."""
        if self.files.rounding is not None:
            return self._quantized(name, old, rank, self.files.rounding)
        if rank is None:
            return self._dense_layer(name)
        if isinstance(old, LowRankLinear) and rank <= old.rank:
            left, right, bias = old.left.weight, old.right.weight, old.left.bias
            return LowRankLinear.from_factors(
                left[:, :rank].detach(),
                right[:rank].detach(),
                None if bias is None else bias.detach(),
            )
        return self.files.layer(name, rank)

    def _quantized(
        self, name: str, old: nn.Module, rank: int | None, options: Options
    ) -> nn.Module:
        if rank is None or not isinstance(old, LowRankLinear) or rank > old.rank:
            return self.files.layer(name, rank)
        shape, bias = self.files.sizes.layers[name].shape, old.left.bias
        return cut_quantized(shape, rank, bias, options, held_by(old))

    def _dense_layer(self, name: str) -> nn.Module:
        out_features, in_features = self.files.sizes.layers[name].shape
        bias = self.files.bias(name)
        if issubclass(self.dense[name], nn.Linear):
            layer: Any = nn.Linear(in_features, out_features, bias is not None)
        else:
            layer = self.dense[name](out_features, in_features)
        if self.files.sizes.layers[name].has_dense:
            layer.weight = nn.Parameter(self.files.dense_weight(name))
        else:
            set_weight(layer, self.files.dense(name))
        if bias is not None:
            layer.bias = nn.Parameter(bias)
        return layer


@torch.no_grad()
def resize(model: PreTrainedModel, budget: float) -> PreTrainedModel:
    """Change the size of an elastic model in place, and return it.

    Plain factors shrink in memory; everything else is read from the checkpoint.

    Args:
        model: loaded from an elastic checkpoint, or made by `compress` with `elastic`.
        budget: fraction of the layers' weights.

    Raises:
        InputError: the model is not elastic, is fused, or has no such size.
    """
    if any(getattr(module, "execution", None) is not None for module in model.modules()):
        raise InputError("the model is fused; call spectrim.unfuse(model) before resizing it")
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise InputError("the model is spread over devices; load it at the other size instead")
    source = getattr(model, _SOURCE, None)
    config = getattr(model.config, "quantization_config", None)
    if source is not None:
        source.resize(model, budget)
    elif isinstance(config, SpectrimConfig) and config.elastic is not None:
        for name, rank in sizes_of(config.elastic).ranks(budget).items():
            if isinstance(layer := model.get_submodule(name), ElasticLinear):
                layer.rank = rank
    else:
        raise InputError(
            "the model was not cut from an elastic checkpoint; make one by "
            "`spectrim compress MODEL -o DIR --elastic 0.4..0.9`"
        )
    return model


def cut_config(whole: SpectrimConfig, budget: float | None = None) -> SpectrimConfig:
    """Return the config of one size of an elastic checkpoint, by default the one it states.

    Raises InputError for a budget outside the range.
    """
    sizes = sizes_of(whole.elastic)
    budget = budget if budget is not None else whole.elastic["budget"] or sizes.largest
    ranks = sizes.ranks(budget)
    plan = dict(whole.provenance.get("plan") or {})
    plan |= {"budget": budget, "kept": sizes.cost(ranks) / sizes.dense_weights}
    plan |= {"predicted_loss": sizes.loss(budget)}
    layers = {n: {"kind": sizes.kind, "rank": r} for n, r in ranks.items() if r is not None}
    inner = None
    if (rounding := rounding_of(whole.elastic)) is not None:
        stated = {"base": ROW_QUANTIZER, "options": asdict(rounding)}
        dense = {"kind": COMPENSATED, **stated, "rank": 0}
        inner = stated | {"others": {"left": COLUMN_QUANTIZER}} if layers else None
        layers = {n: layers.get(n, dense) for n in ranks}
    provenance = whole.provenance | {"plan": plan}
    return SpectrimConfig(layers, whole.split_experts, whole.untied, provenance, inner=inner)


def _pattern(module: str, tensor: str) -> str:
    escaped = module.replace(".", r"\.")
    return rf"(^|\.){escaped}\.{tensor}$"


def _mark_unfilled(layer: Any) -> None:
    """Keep transformers from initializing a layer that is filled after loading."""
    layer.filled = False
    for module in layer.modules():
        module._is_hf_initialized = True
