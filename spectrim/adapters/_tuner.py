"""Each adapter as a tuner of PEFT: a configuration, a layer and a model, under its name.

PEFT looks its methods up by strings, in four tables, so a method of another package is an
entry in each; a name that is taken is refused. Trained tensors are the layer's `{name}_params`
and alone in the saved file, fixed ones its `{name}_fixed`, computed again from the base weight
unless they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from peft import PeftConfig, mapping
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from spectrim.adapters import ADAPTERS
from spectrim.adapters._quantized import Beside, Holder, add_beside, beside, put_beside
from spectrim.adapters._spectral import AdaptedWeight, Pair, pair_of, update_of
from spectrim.adapters.targets import adapter_targets
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import InputError
from spectrim.layers.quantized import CompensatedLinear, CompressedLinear
from spectrim.models.linear import get_weight, is_linear


class MethodKey(str):
    """The name of a method in PEFT's tables, with the `value` that PEFT's own enum has."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)


@dataclass
class SpectralConfig(PeftConfig):
    """Configuration of all spectral adapters; the options of a method follow it.

    Attributes:
        target_modules: names or a pattern as in PEFT; None: every linear layer of the blocks,
            on a compressed model every factor.
        penalty: weight of the method's regularizer in `spectrim finetune`.
        store_directions: save the fixed tensors too, so that no decomposition is computed
            when the adapter is loaded. Always so where they come from statistics.
        stored: the fixed tensors are in the file (set when it is saved).
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    penalty: float = 0.0
    store_directions: bool = False
    stored: bool = False

    adapter: ClassVar[str] = ""
    statistics: ClassVar[Any] = None
    """Set on an instance by `with_statistics`; no field, since it is no part of the file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type: Any = MethodKey(self.adapter.upper())
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        options = self.options()
        if self.penalty and not hasattr(ADAPTERS.get(self.adapter), "penalty"):
            raise InputError(f"'{self.adapter}' has no penalty; {_having_penalties()}")
        required = DECOMPOSITIONS.get(getattr(options, "decomposition", "svd")).REQUIRES
        always = getattr(ADAPTERS.get(self.adapter), "STORED", False)
        self.store_directions |= bool(required) or always

    def options(self) -> Any:
        """Return the method's options. Raises InputError for values that it does not take."""
        names = [f.name for f in fields(ADAPTERS.get(self.adapter).Options)]
        return ADAPTERS.options(self.adapter, {name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"stored": self.store_directions}


class SpectralLinear(nn.Module, BaseTunerLayer):
    """`y = base(x) + B (A x)`, or `+ D x`, with B and A (or D) as the method builds them."""

    adapter: ClassVar[str]

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.in_features: int
        self.out_features: int
        self.out_features, self.in_features = base_weight(base_layer).shape
        self.adapter_options: dict[str, Any] = {}
        for name in (*self.adapter_layer_names, *self.other_param_names[:1]):
            setattr(self, name, nn.ModuleDict())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._before_merge: dict[str, Beside] = {}

    @torch.no_grad()
    def update_layer(self, adapter_name: str, key: str, config: SpectralConfig) -> None:
        """Add an adapter, in float32 or the wider dtype of the base."""
        weight = base_weight(self.base_layer)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        found = None if config.statistics is None else config.statistics.layer(key)
        problem = AdaptedWeight(key, weight.detach().double(), found, config.stored)
        self.adapter_options[adapter_name] = options = config.options()
        parts = ADAPTERS.get(self.adapter).start(problem, options)
        trained = {n: t.to(dtype).contiguous() for n, t in parts.trained.items()}
        fixed = {n: _cast(t, dtype).contiguous() for n, t in parts.fixed.items()}
        self._params[adapter_name] = nn.ParameterDict(trained)
        self._fixed[adapter_name] = BufferDict(fixed, persistent=config.store_directions)
        self.set_adapter(self.active_adapters)

    @property
    def _params(self) -> nn.ModuleDict:
        return getattr(self, f"{self.adapter}_params")

    @property
    def _fixed(self) -> nn.ModuleDict:
        return getattr(self, f"{self.adapter}_fixed")

    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """Return trained and fixed tensors of an adapter by name."""
        fixed: Any = self._fixed[adapter_name]
        trained: Any = self._params[adapter_name]
        return dict(fixed.items()) | dict(trained.items())

    def penalty(self, adapter_name: str) -> Tensor:
        method, tensors = ADAPTERS.get(self.adapter), self.tensors(adapter_name)
        return method.penalty(tensors, self.adapter_options[adapter_name])

    @torch.no_grad()
    def lora_pair(self, adapter_name: str) -> Pair:
        """Return B (out, k) and A (k, in) of the update in float64."""
        tensors = {n: _cast(t, torch.float64) for n, t in self.tensors(adapter_name).items()}
        options = self.adapter_options[adapter_name]
        return pair_of(ADAPTERS.get(self.adapter), tensors, options)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return the update in the orientation of the stored weight, as PEFT expects it."""
        method, tensors = ADAPTERS.get(self.adapter), self.tensors(adapter_name)
        update = update_of(method, tensors, self.adapter_options[adapter_name])
        return update.T if isinstance(self.base_layer, Conv1D) else update

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        for name in self.active_adapters:
            if name in self._params:
                result = result + self._updated(name, x).to(result.dtype)
        return result

    def _updated(self, name: str, x: Tensor) -> Tensor:
        method, tensors = ADAPTERS.get(self.adapter), self.tensors(name)
        x = self._cast_input_dtype(x, next(iter(self._params[name].parameters())).dtype)
        if hasattr(method, "delta"):
            return linear(x, method.delta(tensors, self.adapter_options[name]))
        up, down = method.pair(tensors, self.adapter_options[name])
        return linear(linear(x, down), up)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates to the weight; beside a quantized one they become its adapter."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self._params:
                continue
            if isinstance(self.base_layer, Holder):
                self._before_merge[name] = beside(self.base_layer)
                up, down = self.lora_pair(name)
                add_beside(self.base_layer, up, down)
            else:
                self._add(self.get_delta_weight(name), safe_merge)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged updates away again, the last one first."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if isinstance(self.base_layer, Holder):
                put_beside(self.base_layer, self._before_merge.pop(name))
            else:
                self._add(-self.get_delta_weight(name))

    def _add(self, change: Tensor, safe: bool = False) -> None:
        weight: Any = self.base_layer.weight
        merged = (weight.to(change.dtype) + change).to(weight.dtype)
        if safe and not bool(torch.isfinite(merged).all()):
            raise ValueError("the merged weight is not finite; the adapter is left unmerged")
        weight.data.copy_(merged)


class SpectralModel(BaseTuner):
    """The tuner of one adapter."""

    adapter: ClassVar[str]
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012, as PEFT declares it
    layer_class: ClassVar[type[SpectralLinear]]

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        if peft_config.target_modules is None:
            every: Any = self.peft_config.values()
            others = [c.target_modules for c in every if c is not peft_config]
            peft_config.target_modules = next(filter(None, others), None) or set(
                adapter_targets(self.model)
            )
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, SpectralLinear):
            target.update_layer(adapter_name, current_key, peft_config)
            return
        if not is_linear(target) and not isinstance(target, Holder):
            raise InputError(
                f"{current_key} is a {type(target).__name__}; {self.adapter} adapts linear "
                "layers (nn.Linear, Conv1D), factors and layers quantized by spectrim"
            )
        layer = self.layer_class(target)
        layer.update_layer(adapter_name, current_key, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: Any, child_name: str, new_module: Any, child: Any
    ) -> None:
        if isinstance(new_module, Holder):  # taken out again; its weight has no setter
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


def base_weight(layer: nn.Module) -> Tensor:
    """Return the weight (out, in) that a layer multiplies by."""
    if isinstance(layer, CompensatedLinear):
        return layer.dense()[0].float()
    if isinstance(layer, CompressedLinear):
        return layer.weight
    return get_weight(layer)


def spectral_layers(model: nn.Module) -> Iterator[tuple[str, SpectralLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, SpectralLinear):
            yield name, module


def penalty(model: nn.Module, adapter_name: str = "default") -> Tensor:
    """Return the mean of the method's regularizer over the layers, to be added to a loss.

    Raises InputError for a model whose adapter has none.
    """
    layers = [layer for _, layer in spectral_layers(model)]
    if not layers or not hasattr(ADAPTERS.get(layers[0].adapter), "penalty"):
        raise InputError(f"the model has no adapter with a penalty; {_having_penalties()}")
    return torch.stack([layer.penalty(adapter_name) for layer in layers]).mean()


def _having_penalties() -> str:
    having = (name for name in ADAPTERS.names() if hasattr(ADAPTERS.get(name), "penalty"))
    return f"these have one: {', '.join(having)}"


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def config_class(name: str) -> type[SpectralConfig]:
    """Return the configuration class of an adapter. Raises UnknownNameError, InputError."""
    register()
    return _config_class(name)


@cache
def _config_class(name: str) -> type[SpectralConfig]:
    """Make the class, whose fields are the options of the method."""
    method = ADAPTERS.get(name)
    title = f"{method.TITLE}Config"
    given = [(f.name, f.type, field(default=f.default)) for f in fields(method.Options)]
    summary = f"{ADAPTERS.summary(name)}\n\n{method.Options.__doc__ or ''}"
    made = make_dataclass(title, given, bases=(SpectralConfig,), namespace={"adapter": name})
    made.__module__, made.__doc__ = "spectrim.adapters", summary
    return made


@cache
def register() -> None:
    """Enter all adapters in PEFT's tables. Raises InputError for a name that is taken."""
    keys: dict[str, Any] = {name: name.upper() for name in ADAPTERS.names()}
    for name, key in keys.items():
        if key in mapping.PEFT_TYPE_TO_TUNER_MAPPING:
            raise InputError(
                f"PEFT has a method '{key}' already, so the adapter '{name}' cannot be "
                "registered; use another version of PEFT, or PEFT's own"
            )
    for name, key in keys.items():
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING[key] = _config_class(name)
        mapping.PEFT_TYPE_TO_TUNER_MAPPING[key] = _model_class(name)
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING[key] = f"{name}_"


def _model_class(name: str) -> type[SpectralModel]:
    title = ADAPTERS.get(name).TITLE
    names = {
        "adapter": name,
        "adapter_layer_names": (f"{name}_params",),
        "other_param_names": (f"{name}_fixed", "adapter_options"),
    }
    layer = type(f"{title}Linear", (SpectralLinear,), names)
    own = {
        "adapter": name,
        "prefix": f"{name}_",
        "layer_class": layer,
        "tuner_layer_cls": layer,
    }
    return type(f"{title}Model", (SpectralModel,), own)
