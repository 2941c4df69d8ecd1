"""A model on the meta device whose parts are in memory only while they are used."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from spectrim.errors import ModelError
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.fingerprint import architecture_fingerprint, files_fingerprint
from spectrim.models.hooks import attach_hooks
from spectrim.models.offload.tensors import StoredTensors, persistent_tensors, to_meta
from spectrim.models.targets import decoder_blocks


@dataclass(frozen=True)
class StreamSizes:
    """What of a calibration is in memory beside a part.

    Attributes:
        batch_rows: sequences per batch; None for as many as the recipe's tokens hold.
        logits_rows: sequences whose logits are in memory at once; 0 for those of a batch.
        activation_bytes: memory for activations between blocks; 0 stores them all in files.
    """

    batch_rows: int | None = None
    logits_rows: int = 0
    activation_bytes: int = 0


class StreamedModel:
    """`model` has the structure, with fused experts split; its tensors are on disk.

    Parts that can be `resident` are the decoder blocks, by name, and every module outside of
    them that holds tensors of its own. Buffers that no checkpoint holds (rotary frequencies)
    are always there. `sizes` limit what a calibration holds beside them. Raises ModelError for
    a model that names no blocks.
    """

    whole = False
    sizes = StreamSizes()

    def __init__(
        self,
        config: PreTrainedConfig,
        files: Sequence[Path],
        dtype: torch.dtype,
        trust_remote_code: bool = False,
    ) -> None:
        self._plain = _on_meta(config, dtype, trust_remote_code)
        self._stored = StoredTensors(self._plain, files)
        self._files = files
        self.dtype = dtype
        self.model = copy.deepcopy(self._plain)
        split_experts(self.model, fused_expert_names(self.model))
        self.model.requires_grad_(False).eval()
        self.blocks = [name for name, _ in decoder_blocks(self.model)]
        if not self.blocks:
            raise ModelError(
                f"{type(self.model).__name__} names no blocks, so it is not streamed or "
                "sharded; compress it with the whole model in memory"
            )
        self.outside = [name for name, _ in self._outside()]

    @property
    def parts(self) -> list[str]:
        return [*self.blocks, *self.outside]

    @property
    def directory(self) -> Path:
        """Return where the checkpoint is."""
        return self._files[0].parent

    @cached_property
    def fingerprint(self) -> list[str]:
        return [architecture_fingerprint(self.model), files_fingerprint(self._files)]

    @contextmanager
    def resident(self, name: str) -> Iterator[nn.Module]:
        """Keep a part with its tensors in memory until the context ends."""
        module = self.model.get_submodule(name)
        try:
            self.load(name)
            yield module
        finally:
            self._release(name)

    @contextmanager
    def outside_when_used(self, but: Sequence[str] = ()) -> Iterator[None]:
        """Load modules outside the blocks, except `but`, when they are first run, and keep
        them in memory until the context ends."""
        loaded: set[str] = set()

        def hook_for(name: str) -> Any:
            def hook(module: nn.Module, *inputs: Any) -> None:
                if name not in loaded:
                    self.load(name)
                    loaded.add(name)

            return hook

        modules = {n: m for n, m in self._outside() if n not in but}
        try:
            with attach_hooks((module, hook_for(name)) for name, module in modules.items()):
                yield
        finally:
            for name in loaded:
                self._release(name)

    @contextmanager
    def running(self, released: Callable[[], object]) -> Iterator[None]:
        """Let the whole model be called: each block is in memory while it runs."""

        def release(name: str) -> None:
            released()
            self._release(name)

        blocks = [(name, self.model.get_submodule(name)) for name in self.blocks]
        before = [(block, lambda *_, name=name: self.load(name)) for name, block in blocks]
        after = [(block, lambda *_, name=name: release(name)) for name, block in blocks]
        with self.outside_when_used():
            with attach_hooks(before, after, always_call=True):
                yield
            released()

    def load(self, name: str) -> None:
        """Read a part's tensors, without asking its modules for what they replace."""
        tensors = self._split(name, self._stored.read(self._names(name), self.dtype))
        module = self.model.get_submodule(name)
        for key, tensor in tensors.items():
            owner_name, _, own_name = key.rpartition(".")
            owner = module.get_submodule(owner_name)
            if own_name in owner._buffers:
                owner._buffers[own_name] = tensor
            else:
                owner._parameters[own_name] = nn.Parameter(tensor, requires_grad=False)

    def bytes(self, name: str) -> int:
        """Return the bytes of a part in memory."""
        return self._stored.bytes(self._names(name))

    @property
    def total_bytes(self) -> int:
        return self._stored.bytes(self._plain.state_dict())

    def state(self, name: str) -> dict[str, Tensor]:
        module, prefix = self.model.get_submodule(name), f"{name}." if name else ""
        if name in self.blocks:
            tensors = dict(module.state_dict())
        else:
            tensors = {key: tensor.detach() for _, key, tensor in _own_tensors(module)}
        return {prefix + key: tensor for key, tensor in tensors.items()}

    def structure(self) -> PreTrainedModel:
        """Return a copy of the model's structure, experts fused, on the meta device."""
        return copy.deepcopy(self._plain)

    def part_of(self, layer: str) -> str:
        """Return the part that holds `layer`: a block or a module outside of them."""
        inside = [name for name in self.blocks if layer.startswith(name + ".")]
        return inside[0] if inside else layer

    def tied_to(self, name: str) -> str | None:
        """Return the first of the tensors tied to `name`, where that is another one."""
        return self._stored.aliases.get(name)

    def _names(self, name: str) -> list[str]:
        """Return the names of a part's tensors in the checkpoint's model."""
        module = self._plain.get_submodule(name)
        prefix = f"{name}." if name else ""
        if name in self.blocks:
            return [prefix + key for key in module.state_dict()]
        return [prefix + key for _, key, _ in _own_tensors(module)]

    def _split(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by local name, fused experts as one layer each."""
        prefix = len(name) + 1 if name else 0
        local = {key[prefix:]: tensor for key, tensor in tensors.items()}
        plain = self._plain.get_submodule(name)
        if name not in self.blocks or not fused_expert_names(plain):
            return local
        block = copy.deepcopy(plain)
        block.load_state_dict(local, strict=False, assign=True)
        local.clear()
        tensors.clear()
        split_experts(block, fused_expert_names(block))
        return dict(block.state_dict())

    def _release(self, name: str) -> None:
        module = self.model.get_submodule(name)
        to_meta(persistent_tensors(module) if name in self.blocks else _own_tensors(module))

    def _outside(self) -> Iterator[tuple[str, nn.Module]]:
        inside = tuple(name + "." for name in self.blocks)
        for name, module in self.model.named_modules():
            outside = name not in self.blocks and not name.startswith(inside)
            if outside and any(True for _ in _own_tensors(module)):
                yield name, module


def _own_tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    return (entry for entry in persistent_tensors(module) if entry[0] is module)


def _on_meta(
    config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool
) -> PreTrainedModel:
    """Return the structure alone, but for buffers that no checkpoint holds."""
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **options)
    _compute_buffers(model)
    return model


@torch.no_grad()
def _compute_buffers(model: PreTrainedModel) -> None:
    """Let the model initialize what no checkpoint holds, as after loading one."""
    for _, _, tensor in persistent_tensors(model):
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    model.initialize_weights()
