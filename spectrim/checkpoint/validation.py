"""Check a checkpoint's files before it is loaded, and its tensors after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from spectrim.checkpoint.headers import (
    check_counts,
    check_no_pointers,
    check_types,
    check_widths,
    no_weights,
    read_header,
)
from spectrim.errors import CheckpointError, InputError, ModelError
from spectrim.models.kind import CAUSAL, ModelKind, class_name, kind_of_config
from spectrim.version import QUANT_METHOD

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_OTHER_CONFIGS = ("generation_config.json", "tokenizer_config.json")
_LARGEST_JSON = 32 * 2**20
"""Bytes of a config or index; 50,000 experts that are layers of their own take 5 MB."""
_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
_SHOWN = 5
_HEADS_IN_WORDS = {
    "TokenClassification": "classification of tokens",
    "QuestionAnswering": "spans of answers",
    "MultipleChoice": "multiple choice",
    "ImageClassification": "classification of images",
}
_SPEECH = modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
_HEADS = re.compile(f"For({'|'.join(_HEADS_IN_WORDS)})$")


def check_directory(directory: Path) -> None:
    """Raise InputError for what is no model directory, CheckpointError for a damaged one.

    ModelError names a model that is quantized by another library.
    """
    if not directory.exists():
        raise InputError(f"there is no directory {directory}")
    if not directory.is_dir():
        raise InputError(f"{directory} is a file, expected a model directory")
    check_no_pointers(directory)
    _check_no_adapter(directory)
    if not (directory / CONFIG).is_file():
        raise InputError(f"{directory} has no {CONFIG}, so it is not a model directory")
    config = read_json(directory / CONFIG)
    for name in _OTHER_CONFIGS:
        if (directory / name).is_file():
            read_json(directory / name)
    check_config(config, directory)
    files = weight_files(directory)
    if not files:
        raise CheckpointError(no_weights(directory))
    headers = [read_header(file) for file in files]
    check_counts(config, sum(map(len, headers)), directory)
    check_widths(config, sum(file.stat().st_size for file in files), directory)
    if config.get("quantization_config") is None:
        for header in headers:
            check_types(header, directory)


def check_known_directory(directory: Path) -> ModelKind:
    """Check a directory as `check_directory`; return its model's kind, whose loss is known."""
    check_directory(directory)
    return check_known_config(read_json(directory / CONFIG), directory)


def check_causal_directory(directory: Path) -> None:
    """Check a directory as `check_directory`, and that its model has a next-token loss."""
    check_directory(directory)
    check_causal_config(read_json(directory / CONFIG), directory)


def check_config(config: Mapping[str, Any], source: Path | str) -> None:
    """Raise ModelError for a model that another library quantized, or that names a kernel.

    The Hub's kernels are code, which transformers would fetch and run.
    """
    kernel = str(config.get("_attn_implementation") or config.get("attn_implementation"))
    if "/" in kernel:
        raise ModelError(
            f"{source}: {CONFIG} asks for attention code of the Hub ({kernel}), which is not "
            "run; remove '_attn_implementation' from it"
        )
    _check_dtype(config, source)
    for own in _quantizations(config):
        _check_quantization(own, source)


def _check_quantization(settings: object, source: Path | str) -> None:
    if not isinstance(settings, Mapping):
        raise CheckpointError(
            f"{source}: 'quantization_config' in {CONFIG} is a {type(settings).__name__}, "
            "expected a mapping"
        )
    method = settings.get("quant_method")
    if method != QUANT_METHOD:
        raise ModelError(
            f"{source} is quantized ({_described(settings)}); spectrim reads floating-point "
            "weights: give the model that it was made from"
        )


def _quantizations(config: Mapping[str, Any]) -> Iterator[object]:
    """Yield the settings of quantization of a config and of the configs inside."""
    for name, value in config.items():
        if name in ("quantization_config", "compression_config") and value is not None:
            yield value
        elif isinstance(value, Mapping) and name.endswith("config"):
            yield from _quantizations(value)


def _check_dtype(config: Mapping[str, Any], source: Path | str) -> None:
    for name in ("dtype", "torch_dtype"):
        value = config.get(name)
        if value is not None and str(value).removeprefix("torch.") not in _DTYPES:
            raise ModelError(
                f"{source}: '{name}' is {value!r:.40} in {CONFIG}, expected one of "
                f"{', '.join(_DTYPES)}; give the floating-point model"
            )


def check_known_config(config: Mapping[str, Any], source: Path | str) -> ModelKind:
    """Return the kind of a model; raise ModelError for one whose loss is not known.

    It would be read as something else. Results of `compress_any` may be of any kind, and are
    no concern of this.
    """
    name, kind = class_name(config), kind_of_config(config)
    found = _HEADS.search(name)
    if kind is not None and not found:
        return kind
    what = f"a model for {_HEADS_IN_WORDS[found[1]]}" if found else "an encoder and decoder"
    if str(config.get("model_type")) in _SPEECH:
        raise ModelError(speech_line(source, name))
    raise ModelError(
        f"{source} is {what} ({name or config.get('model_type')}), not a causal language "
        "model, one of sources and targets or a classifier of texts; in Python "
        "spectrim.compress_any(model, batches, loss) compresses it for a loss of its own"
    )


def check_causal_config(config: Mapping[str, Any], source: Path | str) -> None:
    """Raise ModelError for what has no next-token loss: it would be read as something else."""
    kind = check_known_config(config, source)
    if kind is not CAUSAL:
        examples = ", with examples with labels as --data" if kind.labeled else ""
        raise ModelError(
            f"{source} is a model of another kind ({kind.name}, {class_name(config)}), not a "
            "causal language model; `spectrim compress`, `plan` and `evaluate` read it"
            f"{examples}"
        )


def speech_line(source: Path | str, name: str) -> str:
    """Return how a model of speech is compressed: its inputs come from a processor."""
    return (
        f"{source} is a model of speech ({name}), not a causal language model: its rows are "
        "audio that a processor reads, which is given in Python: spectrim.compress_any(model, "
        "batches, loss) with batches of input_features and labels, and loss(model, batch) = "
        "model(**batch).loss.expand(n), n target tokens (docs/other_models.md)"
    )


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that transformers reads, or all there are."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map, so its tensors cannot be found")
    names = sorted({str(name) for name in weight_map.values()})
    if strange := [name for name in names if not name or Path(name).name != name]:
        raise CheckpointError(f"{index} points outside the checkpoint: {strange[0]!r}")
    return [directory / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file. Raise CheckpointError when it holds none."""
    if (size := path.stat().st_size) > _LARGEST_JSON:
        raise CheckpointError(
            f"{path} has {size:,} bytes, expected at most {_LARGEST_JSON:,}; it is damaged"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a mapping")
    return value


def check_loaded(info: Mapping[str, Any], name: str) -> None:
    """Raise CheckpointError unless each tensor was found, expected, and of the right shape."""
    mismatched = [
        f"{key} {tuple(saved)} instead of {tuple(expected)}"
        for key, saved, expected in info["mismatched_keys"]
    ]
    faults = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(mismatched),
        "unreadable": sorted(map(str, info.get("error_msgs") or ())),
    }
    if any(faults.values()):
        parts = [f"{_listed(keys)} {what}" for what, keys in faults.items() if keys]
        raise CheckpointError(f"{name} is incomplete or foreign: {'; '.join(parts)}")


def check_weights(model: nn.Module, remedy: str | None = None) -> None:
    """Raise ModelError naming the first tensor that holds a NaN or an infinity.

    Args:
        remedy: What to do about it, if not the model's checkpoint is to blame.
    """
    remedy = remedy or "the checkpoint is damaged or its training diverged"
    check_finite_tensors(dict(model.named_parameters()), remedy)


def check_finite_tensors(tensors: Mapping[str, Tensor], remedy: str) -> None:
    """Raise ModelError naming the first of `tensors` that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        bad = tensor.numel() - int(torch.isfinite(tensor.detach()).sum())
        if bad:
            raise ModelError(
                f"{name} {tuple(tensor.shape)} has {bad} values that are NaN or infinite; "
                + remedy
            )


def overflow_remedy(dtype: torch.dtype) -> str:
    """Return what to do about values of a compressed model in `dtype` that are not finite."""
    if dtype not in (torch.float16, torch.bfloat16):
        return "a step of the compression diverged; report it with the model's name"
    return (
        f"they do not fit into {str(dtype).removeprefix('torch.')}; save in another type "
        "(--set save_dtype=bfloat16 or float32)"
    )


def _check_no_adapter(directory: Path) -> None:
    if not (directory / ADAPTER).is_file():
        return
    merge = (
        f"AutoPeftModelForCausalLM.from_pretrained('{directory}').merge_and_unload()"
        ".save_pretrained(NEW)"
    )
    if (directory / CONFIG).is_file():
        raise ModelError(
            f"{directory} holds a model and a PEFT adapter ({ADAPTER}); merge them with "
            f"--merge-adapter (compress, plan, evaluate) or peft ({merge}), and give NEW, or "
            "remove the adapter's files to use the model alone"
        )
    base = read_json(directory / ADAPTER).get("base_model_name_or_path")
    raise InputError(
        f"{directory} is a PEFT adapter of {base}, not a model; merge it with --merge-adapter "
        f"(compress, plan, evaluate), or with peft ({merge}) and give NEW"
    )


def _described(settings: Mapping[str, Any]) -> str:
    """Return the method, and the bits where they are stated: `gptq, 4 bits`."""
    four, eight = settings.get("load_in_4bit"), settings.get("load_in_8bit")
    bits = settings.get("bits") or (4 if four else 8 if eight else None)
    method = str(settings.get("quant_method") or "by an unnamed method")
    return method if bits is None else f"{method}, {bits} bits"


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more}"
