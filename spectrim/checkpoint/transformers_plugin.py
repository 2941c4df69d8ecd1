"""The plug-in through which plain `from_pretrained` loads a compressed checkpoint.

Transformers builds the model on the meta device, this swaps its modules, and then the
tensors are found by name. Nothing of the plug-in stays on the loaded model but its config,
so that casting, training and saving treat it like any other.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.empty_layers import install_empty_layers
from spectrim.checkpoint.placeholders import add_placeholders, remove_placeholders
from spectrim.errors import CheckpointError
from spectrim.layers import CompactLinear
from spectrim.layers.quantized import CompressedLinear


class SpectrimQuantizer(HfQuantizer):
    """Reads checkpoints; it cannot compress a dense model on the way in."""

    requires_calibration = True
    quantization_config: SpectrimConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        install_empty_layers(model, self.quantization_config)
        tie_as_named(model)
        add_placeholders(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        remove_placeholders(model)
        check_layers(model)
        detach_quantizer(model)
        keep_names(model)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """None: a checkpoint of ours names its tensors as the modules are named."""
        return []

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def detach_quantizer(model: Any) -> None:
    """Remove the marks of a quantised model; `config.quantization_config` stays."""
    model.is_quantized = False
    for name in ("hf_quantizer", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module.config).pop("_is_quantized", None)


def keep_names(model: Any) -> None:
    """Save tensors under their module names, not under those of the original checkpoint."""
    model._weight_conversions = []


def tie_as_named(model: Any) -> None:
    """Tie the tensors of the new layers where the model ties those of the old."""
    if getattr(model, "all_tied_weights_keys", None):
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        tied = model.get_expanded_tied_weights_keys(all_submodels=True)
        model.all_tied_weights_keys = {key: tied[key] for key in tied.keys() & names}


def check_layers(model: nn.Module) -> None:
    """Raises CheckpointError for tensors that a layer of ours cannot work with."""
    for name, module in model.named_modules():
        if isinstance(module, CompactLinear | CompressedLinear) and (
            fault := module.validate()
        ):
            raise CheckpointError(f"{name}.{fault}")
