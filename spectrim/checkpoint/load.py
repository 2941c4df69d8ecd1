"""Load a dense or compressed model, or say why not; never a re-initialised weight."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from spectrim.checkpoint.transformers_plugin import register
from spectrim.checkpoint.validation import check_directory, check_loaded, check_weights
from spectrim.errors import CheckpointError, InputError

ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED = ("reference", "arithmetic")
"""The models that come with the package, each loaded by its name."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load(name: str | Path, **options: Any) -> tuple[PreTrainedModel, Any]:
    """The model and its tokenizer (None if it has none) of a directory, a Hub name, or a
    bundled model. `options` go to `from_pretrained`; remote code runs only if they ask for it.

    Raises InputError for what cannot be found, CheckpointError for missing, unexpected,
    misshapen or damaged tensors, ModelError for weights that are not finite.
    """
    source = resolve(name)
    if isinstance(source, Path):
        check_directory(source)
    options = {"trust_remote_code": False, **options}
    register()
    model = _load_model(source, options)
    check_weights(model)
    return model, load_tokenizer(source, options)


def resolve(name: str | Path) -> Path | str:
    """An existing directory (of a bundled model too), or a Hub name. Raises InputError."""
    if name in BUNDLED:
        return _bundled(str(name))
    path = Path(name).expanduser()
    if path.exists():
        return path
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise InputError(f"there is no directory {name}")
    return name


def stored_dtype(name: str | Path) -> torch.dtype | None:
    """The dtype that the checkpoint's config states, or None."""
    source = resolve(name)
    with _explained(source):
        dtype = AutoConfig.from_pretrained(source).dtype
    return dtype if isinstance(dtype, torch.dtype) else None


def load_tokenizer(source: Path | str, options: dict[str, Any]) -> Any:
    """The tokenizer, or None where no file of one exists. Raises CheckpointError."""
    known = {key: options[key] for key in _HUB_OPTIONS if key in options}
    known["trust_remote_code"] = options.get("trust_remote_code", False)
    if isinstance(source, Path) and not any((source / f).is_file() for f in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, **known)
    except OSError as error:
        if isinstance(source, str):
            return None
        raise CheckpointError(f"{source}: {_first_line(error)}") from error
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise CheckpointError(f"the tokenizer of {source}: {_first_line(error)}") from error


def _load_model(source: Path | str, options: dict[str, Any]) -> PreTrainedModel:
    options = options | {"output_loading_info": True, "use_safetensors": True}
    options["ignore_mismatched_sizes"] = True  # so that all of them are listed, as an error
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    with _explained(source), _quiet():
        model, info = from_pretrained(source, **options)
    check_loaded(info, str(source))
    return model


@contextmanager
def _explained(source: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(source, Path):
            raise CheckpointError(f"{source}: {_first_line(error)}") from error
        raise InputError(
            f"{source} is neither a directory here nor a model that the Hub gives: "
            f"{_first_line(error)}"
        ) from error
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        asks = (
            "; it asks for trust_remote_code=True" if "trust_remote_code" in str(error) else ""
        )
        raise CheckpointError(
            f"{source} cannot be loaded: {_first_line(error)}{asks}"
        ) from error
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{source} cannot be loaded: {_first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report on the tensors, which would repeat ours."""
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
