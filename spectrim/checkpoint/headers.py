"""Compare a config with the headers of its weights, before a model is built by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from spectrim.errors import CheckpointError, ModelError

_FLOATS = ("F64", "F32", "F16", "BF16")
_WEIGHTS = ("weight", "proj")
"""Ends of the names of tensors that are multiplied with; masks and positions are integers."""
_LARGEST_COUNT = 1000
"""Layers or experts that are built without comparing them with the stored tensors."""
_LARGEST_WIDTH = 100_000
"""Widths that are built without comparing them with the stored bytes."""
_WIDTHS = ("size", "dim", "heads", "labels", "d_model", "d_ff", "d_inner", "n_embd", "n_inner")
_POINTER = b"version https://git-lfs"
_LARGEST_POINTER = 1024


def read_header(file: Path) -> dict[str, str]:
    """Return the types of the tensors in a file. Raises CheckpointError for a damaged one."""
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; the index names it")
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or damaged: {error}") from error


def check_types(header: Mapping[str, str], source: Path | str) -> None:
    """Raise ModelError for weights that are no floating-point numbers of 16 bits or more.

    Without the scales of a quantization they would be read as the weights themselves.
    """
    for name, dtype in header.items():
        if dtype not in _FLOATS and name.endswith(_WEIGHTS):
            raise ModelError(
                f"{source} holds {name} as {dtype}, and its config.json no quantization_config "
                f"that says how to read it; give a model of {', '.join(_FLOATS)} weights"
            )


def check_counts(config: Mapping[str, Any], tensors: int, source: Path | str) -> None:
    """Raise CheckpointError for more layers or experts than there are tensors.

    Every layer is built before its tensors are looked for, so a damaged count would take hours.
    """
    for name, value in _numbers(config):
        if _is_count(name) and value > max(tensors, _LARGEST_COUNT):
            raise _too_large(name, value, f"{tensors} tensors", source)


def check_widths(config: Mapping[str, Any], stored: int, source: Path | str) -> None:
    """Raise CheckpointError for a width of more than `stored` bytes.

    Its tensors, or the names of its labels, would fill the memory before they are compared.
    """
    for name, value in _numbers(config):
        if name.endswith(_WIDTHS) and value > max(stored, _LARGEST_WIDTH):
            raise _too_large(name, value, f"{stored} bytes", source)


def check_no_pointers(directory: Path) -> None:
    """Raise CheckpointError for a file of Git LFS that names its content without holding it."""
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.stat().st_size < _LARGEST_POINTER:
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise CheckpointError(
                        f"{path} is a pointer of Git LFS, not the file itself; run `git lfs "
                        f"pull` in {directory}"
                    )


def no_weights(directory: Path) -> str:
    """Return what a directory without safetensors holds instead, and what to do."""
    if pickles := sorted(path.name for path in directory.glob("*.bin")):
        return (
            f"{directory} has its weights only as a pickle ({pickles[0]}), which can run code "
            'when opened; if you trust it, convert it: python -c "from transformers import '
            f"AutoModelForCausalLM as M; M.from_pretrained('{directory}')"
            ".save_pretrained('NEW')\" and copy the tokenizer's files to NEW"
        )
    if files := sorted(directory.glob("*.gguf")):
        return f"{directory} has no safetensors weights; give the GGUF file: {files[0]}"
    return f"{directory} has no safetensors weights"


def _too_large(name: str, value: float, held: str, source: Path | str) -> CheckpointError:
    return CheckpointError(
        f"{source}: '{name}' is {value} in config.json, but its files hold {held}; the config "
        "is damaged or belongs to another model"
    )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a config, also of those inside of it."""
    for name, value in config.items():
        if isinstance(value, Mapping) and name.endswith("config"):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield name, value


def _is_count(name: str) -> bool:
    """Return whether a field states a number of layers or experts, not their width."""
    return ("layer" in name or "expert" in name) and not name.endswith(("size", "dim"))
