"""Load a dense or compressed model, or say why not; never a re-initialized weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.peft_utils import find_adapter_config_file

from spectrim.allocation import NestedSizes
from spectrim.checkpoint.elastic.choose import WISHES, choose_budget
from spectrim.checkpoint.elastic.entry import check_elastic, sizes_of
from spectrim.checkpoint.elastic.stored import BUDGET
from spectrim.checkpoint.gguf import is_gguf, load_gguf
from spectrim.checkpoint.loading_errors import explain, reason
from spectrim.checkpoint.transformers_plugin import register
from spectrim.checkpoint.validation import (
    CONFIG,
    check_causal_config,
    check_config,
    check_known_config,
    check_known_directory,
    check_loaded,
    check_weights,
    read_json,
)
from spectrim.errors import CheckpointError, InputError, ModelError
from spectrim.models.kind import CAUSAL, SPEECH, ModelKind

ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED = ("reference", "arithmetic")
"""The models that come with the package, each loaded by its name."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load(name: str | Path, **options: Any) -> tuple[PreTrainedModel, Any]:
    """Return the model and its tokenizer, or None where it has none.

    Args:
        name: A directory, a Hub name, a GGUF file, or a bundled model.
        options: Passed to `from_pretrained`; remote code runs only if they ask for it. For an
            elastic checkpoint one of `budget` (fraction of the layers' weights), `target_loss`
            (nats per token) and `size` ("300MiB") chooses its size, by default the largest.

    Raises:
        InputError: The model cannot be found, or has no such size.
        CheckpointError: Tensors are missing, unexpected, misshapen or damaged.
        ModelError: Weights are not finite, or quantized by another library.
    """
    source = resolve(name)
    options = {"trust_remote_code": False, **options}
    if is_gguf(source):
        if any(options.pop(wish, None) is not None for wish in WISHES):
            raise InputError(f"{name} has one size; leave out {', '.join(WISHES)}")
        return load_gguf(Path(source), options)
    if isinstance(source, Path):
        kind = check_known_directory(source)
    else:
        kind = _check_hub(source, options)
    register()
    if any(options.get(wish) is not None for wish in WISHES):
        wishes = {wish: options[wish] for wish in WISHES if options.get(wish) is not None}
        options[BUDGET] = find_budget(name, wishes, **_hub_options(options))
    options = {key: value for key, value in options.items() if key not in WISHES}
    model = load_strictly(getattr(transformers, kind.loader), source, options)
    check_weights(model)
    if kind is SPEECH:
        return model, load_processor(source, options)
    return model, load_tokenizer(source, options)


def check_dense(name: str | Path, **options: Any) -> None:
    """Raise ModelError for a compressed checkpoint, without loading it."""
    settings = read_config(name, **options).get("quantization_config")
    if settings is not None:
        check_config({"quantization_config": settings}, str(name))
        raise ModelError(
            f"{name} is already compressed by spectrim; compress its original with another "
            f"budget, or run `spectrim export --dense {name} -o DIR` and compress DIR"
        )


def resolve(name: str | Path) -> Path | str:
    """Return an existing directory (also of a bundled model) or a Hub name."""
    if name in BUNDLED:
        return _bundled(str(name))
    path = _expand(name)
    try:
        exists = path.exists()
    except OSError as error:
        raise InputError(f"there is no directory {name}: {error.strerror}") from error
    if exists:
        return path
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise InputError(f"there is no directory {name}")
    return name


def read_config(name: str | Path, **options: Any) -> dict[str, Any]:
    """Return the values in a checkpoint's config.json; no code of the model is run."""
    source = resolve(name)
    if isinstance(source, Path):
        path = source / CONFIG
        return read_json(path) if path.is_file() else {}
    with explain(source):
        return PreTrainedConfig.get_config_dict(source, **_hub_options(options))[0]


def is_elastic(name: str | Path, **options: Any) -> bool:
    """Return whether a checkpoint holds several sizes."""
    return _elastic_entry(name, **options) is not None


def _elastic_entry(name: str | Path, **options: Any) -> Any:
    if is_gguf(resolve(name)):
        return None
    return (read_config(name, **options).get("quantization_config") or {}).get("elastic")


def elastic_sizes(name: str | Path, **options: Any) -> NestedSizes:
    """Return the sizes of an elastic checkpoint. Raises InputError for any other."""
    entry = _elastic_entry(name, **options)
    if entry is None:
        raise InputError(
            f"{name} has one size; only a checkpoint of `spectrim compress --elastic` is cut "
            "when it is loaded"
        )
    check_elastic(entry)
    return sizes_of(entry)


def find_budget(name: str | Path, wishes: Mapping[str, Any], **options: Any) -> float:
    """Return the budget that one of `budget`, `target_loss` and `size` means.

    Raises InputError for a checkpoint that is not elastic or has no such size.
    """
    sizes = elastic_sizes(name, **options)
    entry = read_config(name, **options)["quantization_config"]["elastic"]
    dtype = stored_dtype(name, **options) or torch.float32
    return choose_budget(sizes, wishes, dtype.itemsize, entry["other_weights"])


def check_causal(name: str | Path, **options: Any) -> None:
    """Raise ModelError for a checkpoint of another kind than a causal language model."""
    if not is_gguf(resolve(name)):
        check_causal_config(read_config(name, **options), name)


def stored_kind(name: str | Path, **options: Any) -> ModelKind:
    """Return the kind of a checkpoint by its config. Raises ModelError for an unknown one."""
    if is_gguf(resolve(name)):
        return CAUSAL
    return check_known_config(read_config(name, **options), name)


def stored_dtype(name: str | Path, **options: Any) -> torch.dtype | None:
    """Return the dtype that the checkpoint's config states, bfloat16 for GGUF, or None."""
    if is_gguf(resolve(name)):
        return torch.bfloat16
    config = read_config(name, **options)
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        for field in ("dtype", "torch_dtype"):
            dtype = getattr(torch, str(values.get(field)).removeprefix("torch."), None)
            if isinstance(dtype, torch.dtype):
                return dtype
    return None


def load_tokenizer(source: Path | str, options: dict[str, Any]) -> Any:
    """Return the tokenizer, or None where no file of one exists. Raise CheckpointError."""
    known = _hub_options(options)
    known["trust_remote_code"] = options.get("trust_remote_code", False)
    if isinstance(source, Path) and not has_tokenizer(source):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, **known)
    except OSError as error:
        if isinstance(source, str):
            return None
        raise CheckpointError(f"{source}: {reason(error)}") from error
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise CheckpointError(f"the tokenizer of {source}: {reason(error)}") from error


def load_processor(source: Path | str, options: Mapping[str, Any]) -> Any:
    """Return the processor of a model of speech, None where it has no file of one."""
    if isinstance(source, Path) and not any((source / n).is_file() for n in _PROCESSOR_FILES):
        return None
    with explain(source):
        return AutoProcessor.from_pretrained(source, **_hub_options(options))


def is_bundled(name: str) -> bool:
    """Return whether a name or a directory is a model that comes with the package."""
    return name in BUNDLED or any(Path(name) == ASSETS / bundled for bundled in BUNDLED)


def has_tokenizer(directory: Path) -> bool:
    """Return whether a directory holds a file of a tokenizer."""
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


def load_strictly(
    loader: Any, source: Path | str, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Return what `loader.from_pretrained` gives, if every tensor is there and fits.

    Raises:
        CheckpointError: A tensor is missing, unexpected or misshapen.
    """
    strict = {
        "output_loading_info": True,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # so that all of them are listed, as an error
    }
    with explain(source), _quiet():
        model, info = loader.from_pretrained(source, **{**options, **strict})
    check_loaded(info, str(source))
    return model


def _check_hub(source: str, options: Mapping[str, Any]) -> ModelKind:
    """Return the kind of a model of the Hub; refuse an adapter or a quantized model."""
    known = _hub_options(options)
    with explain(source):
        if find_adapter_config_file(source, **known):
            raise ModelError(
                f"{source} is a PEFT adapter or holds one; merge it with peft "
                f"(AutoPeftModelForCausalLM.from_pretrained('{source}').merge_and_unload()"
                ".save_pretrained(NEW)) and give NEW"
            )
    config = read_config(source, **options)
    check_config(config, source)
    return check_known_config(config, source)


def _hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in _HUB_OPTIONS if key in options}


def _expand(name: str | Path) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"there is no directory {name}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own report on the tensors, which would repeat ours."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _bundled(name: str) -> Path:
    if not (ASSETS / name).is_dir():
        raise InputError(f"this installation has no {name} model; name a directory")
    return ASSETS / name
