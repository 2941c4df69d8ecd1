"""Compare a checkpoint that was just written with the model in memory.

The stored tensors are read back and compared, the config has to build the same tensors, and
where a second copy of the model fits into memory, it is loaded strictly and one forward pass
has to agree.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.checkpoint.elastic.model import resize
from spectrim.checkpoint.elastic.stored import BUDGET, install_stored
from spectrim.checkpoint.empty_layers import install_empty_layers
from spectrim.checkpoint.load import load_strictly
from spectrim.checkpoint.validation import check_directory, weight_files
from spectrim.errors import CheckpointError, NumericalWarning, SpectrimError
from spectrim.layers import ElasticLinear
from spectrim.models.context import random_features
from spectrim.models.experts import split_experts
from spectrim.models.hooks import inference
from spectrim.models.kind import SPEECH, kind_of

_TOKENS = 8
_MOST_COMPARED = 4 * 2**30
"""Bytes of stored tensors that are read back; of larger models evenly spaced ones."""
_COPIES = 1.5
"""Free memory that loading needs, relative to the model."""
_DIFFERENCES = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Of the logits, relative to the largest, by dtype; others are half precision."""
_HALF_DIFFERENCE = 2e-2

_ROUNDED_AGAIN = 5
"""Additional tolerance of the logits where a layer is pivoted and rounded on loading."""


def verify_saved(directory: Path, model: PreTrainedModel, reload: bool = True) -> None:
    """Raise CheckpointError unless `directory` holds `model`, and would load as it.

    Args:
        reload: Whether to load the checkpoint and compare a forward pass, if memory allows.
    """
    _check_files(directory)
    _compare_tensors(directory, model.state_dict())
    _compare_structure(directory, model)
    if reload and _fits(model):
        for budget in _budgets(model):
            _compare_loaded(directory, model, budget)


def verify_streamed(
    directory: Path, structure: PreTrainedModel, samples: Mapping[str, Tensor]
) -> None:
    """Raise CheckpointError unless the files hold `samples` and fit a model without values."""
    _check_files(directory)
    stored, state = dict(_stored(directory)), structure.state_dict()
    for name, path in stored.items():
        with safe_open(path, framework="pt") as file:
            if state[name].shape != torch.Size(file.get_slice(name).get_shape()):
                raise _differs(f"{name} has another shape in the files")
    _compare_values(stored, samples)
    _compare_structure(directory, structure)


def _budgets(model: PreTrainedModel) -> list[dict[str, float]]:
    """Return the sizes to load: of an elastic model the smallest and the largest."""
    elastic = model.config.quantization_config.elastic
    return [{}] if elastic is None else [{BUDGET: elastic[n]} for n in ("smallest", "largest")]


def _compare_loaded(directory: Path, model: PreTrainedModel, size: dict[str, float]) -> None:
    options = {"attn_implementation": model.config._attn_implementation, "dtype": "auto"}
    loaded = load_strictly(type(model), directory, options | size)
    if size:
        resize(model, size[BUDGET])
    _compare_forward(model, nn.Module.to(loaded, model.device))


def _check_files(directory: Path) -> None:
    try:
        check_directory(directory)
    except SpectrimError as error:
        raise _differs(str(error)) from error


def _compare_tensors(directory: Path, expected: Mapping[str, Tensor]) -> None:
    stored = dict(_stored(directory))
    if foreign := sorted(set(stored) - set(expected)):
        raise _differs(f"{foreign[0]} is in the files, not in the model")
    pointers = {expected[name].data_ptr() for name in stored}
    for name, tensor in expected.items():
        if name not in stored and tensor.data_ptr() not in pointers:
            raise _differs(f"{name} is in the model, not in the files")
    names = [name for name in stored if not expected[name].is_meta]
    _compare_values(stored, {name: expected[name] for name in _spread(names, expected)})


def _compare_values(stored: Mapping[str, Path], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        with safe_open(stored[name], framework="pt") as file:
            if not _equal(file.get_tensor(name), tensor):
                raise _differs(f"{name} has other values in the files")


def _compare_structure(directory: Path, model: PreTrainedModel) -> None:
    """Raise unless the stored config builds tensors of the same names and shapes."""
    config = type(model.config).from_pretrained(directory)
    settings = config.quantization_config
    if isinstance(settings, dict):
        settings = type(model.config.quantization_config).from_dict(settings)
    with torch.device("meta"):
        built = type(model)(config)
        if settings.elastic is None:
            install_empty_layers(built, settings)
        else:
            split_experts(built, list(settings.split_experts))
            install_stored(built, settings.elastic)
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if shapes.pop(name, None) != tensor.shape:
            raise _differs(f"the stored config builds no {name} {tuple(tensor.shape)}")
    if shapes:
        raise _differs(f"the stored config builds {next(iter(shapes))}, the model has none")


def _compare_forward(model: PreTrainedModel, loaded: PreTrainedModel) -> None:
    inputs = _inputs(model)
    if inputs is None or any(map(_is_altered, model.modules())):
        return
    with inference(model, loaded):
        try:
            expected = _logits(model, inputs)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            return  # a model that takes other inputs; its tensors were compared
        found = _logits(loaded, inputs)
    if expected is None or found is None:
        return
    if not torch.isfinite(expected).all():
        warnings.warn(
            f"the model's outputs are not finite in {model.dtype}; "
            "save it in another type (bfloat16 or float32)",
            NumericalWarning,
            stacklevel=4,
        )
        return
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    factor = _ROUNDED_AGAIN if any(isinstance(m, ElasticLinear) for m in model.modules()) else 1
    if not difference <= factor * _DIFFERENCES.get(model.dtype, _HALF_DIFFERENCE):
        raise _differs(f"the outputs of the loaded model differ by {difference:.2g}")


def _is_altered(module: nn.Module) -> bool:
    """Return whether a module computes something that no checkpoint holds."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return "forward" in vars(module) or any(hooks)


def _inputs(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """Return random tokens; None for a model that reads none."""
    count = getattr(model.config.get_text_config(), "vocab_size", None)
    if count is None:
        return None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, count, (1, _TOKENS), generator=generator).to(model.device)
    if kind_of(model) is SPEECH:
        features = random_features(model).to(model.device, model.dtype)
        return {"input_features": features, "decoder_input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


def _logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor | None:
    output: Any = model(**inputs)
    logits = getattr(output, "logits", None)
    return None if logits is None else logits.float()


def _stored(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            yield from ((name, path) for name in file.keys())  # noqa: SIM118


def _spread(names: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    size = sum(tensors[name].nbytes for name in names)
    return names[:: max(1, -(-size // _MOST_COMPARED))]


def _equal(stored: Tensor, tensor: Tensor) -> bool:
    tensor = tensor.detach().to(stored.device)
    same = stored.dtype == tensor.dtype and stored.shape == tensor.shape
    return same and torch.equal(_bytes(stored), _bytes(tensor))


def _bytes(tensor: Tensor) -> Tensor:
    """Flat first: a column counts as contiguous with a stride that no view of bytes takes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _fits(model: PreTrainedModel) -> bool:
    if getattr(model, "hf_device_map", None) or any(p.is_meta for p in model.parameters()):
        return False
    need = _COPIES * sum(tensor.nbytes for tensor in model.state_dict().values())
    available = psutil.virtual_memory().available
    if model.device.type == "cuda":
        available = min(available, torch.cuda.mem_get_info(model.device)[0])
    return need <= available


def _differs(what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint that was written differs from the model in memory: {what}; nothing "
        "was kept, please report this with the model's name"
    )
