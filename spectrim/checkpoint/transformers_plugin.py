"""The plug-in through which plain `from_pretrained` loads a compressed checkpoint.

Transformers builds the model on the meta device, the plug-in replaces its modules, and the
loader then finds the tensors by name. Only the config stays on the loaded model, so that it
can be cast, trained and saved like any other.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.empty_layers import install_empty_layers
from spectrim.checkpoint.import_guard import without_guard
from spectrim.checkpoint.placeholders import add_placeholders, remove_placeholders
from spectrim.errors import CheckpointError
from spectrim.layers import CompactLinear
from spectrim.layers.quantized import CompressedLinear
from spectrim.version import QUANT_METHOD


class SpectrimQuantizer(HfQuantizer):
    """Load compressed checkpoints; a dense model cannot be compressed on loading."""

    requires_calibration = True
    quantization_config: SpectrimConfig

    def update_attn_implementation(self, config: Any) -> Any:
        """Return the config without the sentence for those who did not import us."""
        return without_guard(config)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        with no_init_weights():  # what is read from the files is not drawn first
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
        """Return no conversion: our checkpoints name their tensors as the modules are named."""
        return []

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def register() -> None:
    """Register the plug-in, in place of an earlier import of it or of the import hook."""
    from spectrim.checkpoint.elastic.quantizer import ElasticQuantizer

    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.pop(QUANT_METHOD, None)
    auto.AUTO_QUANTIZER_MAPPING.pop(QUANT_METHOD, None)
    auto.register_quantization_config(QUANT_METHOD)(SpectrimConfig)
    auto.register_quantizer(QUANT_METHOD)(ElasticQuantizer)


def detach_quantizer(model: Any) -> None:
    """Remove the marks of a quantized model; `config.quantization_config` stays."""
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
    """Raise CheckpointError for loaded tensors that a layer cannot use."""
    for name, module in model.named_modules():
        if isinstance(module, CompactLinear | CompressedLinear) and (
            fault := module.validate()
        ):
            raise CheckpointError(f"{name}.{fault}")
