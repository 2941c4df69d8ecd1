"""A checkpoint's tensors, read for one part of the model at a time.

Which name on disk belongs to which parameter, and how one is made of the other (experts that
are one tensor each on disk and fused in memory), is transformers' own knowledge: its loader is
asked, with the names of one part only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from spectrim.errors import CheckpointError, ModelError

_SHOWN = 3
_BUFFERS = (r"rotary_emb\.inv_freq$", r"\.attn\.(masked_)?bias$", r"position_ids$")
"""Buffers that old checkpoints hold and models now compute."""


class StoredTensors:
    """The safetensors `files` of a checkpoint of `model`, which is on the meta device.

    Raises CheckpointError for a damaged file and for tensors that the model has not, or that
    no file holds.
    """

    def __init__(self, model: PreTrainedModel, files: Sequence[Path]):
        self.model = model
        self.mapping: list[Any] = get_model_conversion_mapping(model)
        self.aliases = _aliases(model)
        self._meta = {name: t.detach() for name, t in model.state_dict(keep_vars=True).items()}
        self._file_of = {key: path for path in files for key in _keys(path)}
        self._target_of = {key: self._target(key) for key in self._file_of}
        self._check_complete()

    def read(self, names: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """Read the model's tensors `names`.

        Raises CheckpointError for one of another shape, ModelError for one that is not finite.
        """
        wanted = {name: self.aliases.get(name, name) for name in names}
        targets = set(wanted.values())
        keys = [k for k, target in self._target_of.items() if self._first(target) in targets]
        with self._slices(keys) as slices:
            found = self._converted(slices, dtype)
        by_first = {self._first(name): tensor for name, tensor in found.items()}
        if missing := [name for name, first in wanted.items() if first not in by_first]:
            raise CheckpointError(f"the checkpoint has no tensor for {_listed(missing)}")
        for name, first in wanted.items():
            _check_finite(name, by_first[first])
        return {name: by_first[first] for name, first in wanted.items()}

    def bytes(self, names: Iterable[str]) -> int:
        """Return the bytes of the model's tensors `names` in its dtype, tied ones once."""
        firsts = {self.aliases.get(name, name) for name in names}
        return sum(self._meta[n].numel() * self._meta[n].element_size() for n in firsts)

    def _first(self, name: str) -> str:
        return self.aliases.get(name, name)

    def _target(self, key: str) -> str:
        renamings = [entry for entry in self.mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self.mapping if isinstance(entry, WeightConverter)]
        prefix = self.model.base_model_prefix
        target, _ = rename_source_key(key, renamings, converters, prefix, self._meta)
        if target not in self._meta and key in self._meta:
            return key
        return target

    def _check_complete(self) -> None:
        targets = {self._first(target) for target in self._target_of.values()}
        ignored = [*_BUFFERS, *(self.model._keys_to_ignore_on_load_unexpected or ())]
        known = {self._first(name) for name in self._meta}
        unexpected = [
            name for name in targets - known if not any(re.search(p, name) for p in ignored)
        ]
        parts = {"missing": known - targets, "unexpected": unexpected}
        if any(parts.values()):
            found = [f"{_listed(sorted(v))} {what}" for what, v in parts.items() if v]
            raise CheckpointError(
                f"the checkpoint is incomplete or foreign: {'; '.join(found)}"
            )

    @contextmanager
    def _slices(self, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        with ExitStack() as stack:
            paths = sorted({self._file_of[key] for key in keys})
            files = {path: stack.enter_context(_opened(path)) for path in paths}
            yield {key: files[self._file_of[key]].get_slice(key) for key in keys}

    def _converted(self, slices: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        """Through transformers' loader, which fills the model; the tensors are taken out again
        and the model is left on the meta device."""
        config = LoadStateDictConfig(dtype=dtype, weight_mapping=self.mapping)
        try:
            with _without_progress():
                info, _ = convert_and_load_state_dict_in_model(self.model, slices, config)
            if info.mismatched_keys or info.conversion_errors:
                wrong = [*map(str, info.mismatched_keys), *info.conversion_errors]
                raise CheckpointError(f"tensors of another shape: {_listed(wrong)}")
            return _taken_out(self.model)
        except (SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint cannot be read: {error}") from error
        finally:
            _taken_out(self.model)


def persistent_tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Owner, local name and value of each parameter and each buffer that checkpoints hold."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, name, parameter
        for name, buffer in owner._buffers.items():
            if buffer is not None and name not in owner._non_persistent_buffers_set:
                yield owner, name, buffer


def to_meta(tensors: Iterable[tuple[nn.Module, str, Tensor]]) -> None:
    """Let go of tensors by owner and local name; their modules are left on the meta device."""
    for owner, name, tensor in list(tensors):
        empty = torch.empty_like(tensor, device="meta")
        if name in owner._buffers:
            owner._buffers[name] = empty
        else:
            owner._parameters[name] = nn.Parameter(empty, requires_grad=False)


def _taken_out(model: nn.Module) -> dict[str, Tensor]:
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for owner, name, tensor in list(persistent_tensors(model)):
        if not tensor.is_meta:
            full = f"{names[id(owner)]}.{name}".lstrip(".")
            found[full] = tensor.detach()
            values: Any = owner._buffers if name in owner._buffers else owner._parameters
            empty = torch.empty_like(tensor, device="meta")
            values[name] = empty if name in owner._buffers else nn.Parameter(empty, False)
    return found


def _aliases(model: nn.Module) -> dict[str, str]:
    """Tied parameters: each name but the first -> the first."""
    firsts: dict[int, str] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = firsts.setdefault(id(tensor), name)
        if first != name:
            found[name] = first
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error


def _keys(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


@contextmanager
def _without_progress() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_finite(name: str, tensor: Tensor) -> None:
    """By the sum, which overflows or is NaN where an entry is; entry by entry only then."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise ModelError(
            f"{name} {tuple(tensor.shape)} has {bad} values that are NaN or infinite; "
            "the checkpoint is damaged or its training diverged"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
