"""Checkpoints that load where spectrim is not: dense, or with their own code.

A dense export multiplies the factors back: nothing smaller but by removed experts, the same
outputs, and every tool that reads the original architecture reads it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from spectrim.checkpoint.card import CARD_FILE, dense_card
from spectrim.checkpoint.config import SpectrimConfig
from spectrim.checkpoint.config_entries import COMPENSATED, fill_table
from spectrim.checkpoint.export.self_contained import MODULE, remote_code
from spectrim.checkpoint.import_guard import GUARD, SELF_CONTAINED
from spectrim.checkpoint.load import check_causal, load, resolve
from spectrim.checkpoint.save import warn_of_failure
from spectrim.checkpoint.validation import check_directory, read_json
from spectrim.errors import CheckpointError, InputError, ModelError
from spectrim.layers import CompactLinear, FactoredEmbedding, FactoredHead
from spectrim.models.experts import SplitExperts
from spectrim.models.linear import get_bias, get_weight, set_weight
from spectrim.runtime.files import write_text
from spectrim.runtime.output_dir import MARKER, is_spectrim_output, output_directory


def export_dense(
    checkpoint: str | Path,
    directory: str | Path,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    budget: float | None = None,
) -> Path:
    """Write the compressed `checkpoint` as a plain model of its original architecture.

    budget: the size of an elastic checkpoint, by default its largest.

    Raises:
        CheckpointError: `checkpoint` is not compressed by spectrim.
        InputError: The directory cannot be written.
    """
    model, tokenizer = load(checkpoint, budget=budget, trust_remote_code=trust_remote_code)
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, SpectrimConfig):
        raise CheckpointError(f"{checkpoint} is not compressed, so there is nothing to export")
    plain = dense_model(model)
    with output_directory(directory, overwrite) as partial:
        plain.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        with warn_of_failure("README.md was not written"):
            write_text(partial / CARD_FILE, dense_card(str(checkpoint)))
        write_text(partial / MARKER, json.dumps(config.to_dict(), indent=2, sort_keys=True))
    return Path(directory)


def export_self_contained(
    checkpoint: str | Path, directory: str | Path, overwrite: bool = False
) -> Path:
    """Copy a compressed `checkpoint` and add the code that loads it without spectrim.

    It is loaded by `from_pretrained(directory, trust_remote_code=True)`.

    Raises:
        CheckpointError: `checkpoint` is not compressed by spectrim.
        InputError: The directory cannot be written, the model comes with code of its own, or
            a layer type needs more than torch and transformers.
    """
    source = resolve(checkpoint)
    check_causal(checkpoint)
    if not isinstance(source, Path):
        raise InputError(f"there is no directory {source}; a model of the Hub is copied first")
    check_directory(source)
    settings = read_json(source / "config.json")
    if not (is_spectrim_output(source) and "quantization_config" in settings):
        raise CheckpointError(f"{checkpoint} is not compressed, so there is nothing to export")
    if "auto_map" in settings:
        raise InputError(f"{checkpoint} comes with its own code already; export it --dense")
    config = SpectrimConfig.from_dict(settings["quantization_config"])
    if config.elastic is not None:
        raise InputError(
            f"{checkpoint} holds several sizes; write one by `spectrim export {checkpoint} "
            "--budget 0.6 -o DIR` and export DIR"
        )
    kinds = {entry["kind"] for entry in config.layers.values()} - {COMPENSATED}
    entries = [*config.layers.values(), config.inner or {}]
    others = (config.inner or {}).get("others", {}).values()
    code = remote_code(kinds, {e["base"] for e in entries if "base" in e} | set(others))
    settings[GUARD] = SELF_CONTAINED
    settings["auto_map"] = {
        "AutoConfig": f"{MODULE}.RemoteConfig",
        "AutoModelForCausalLM": f"{MODULE}.RemoteModel",
    }
    with output_directory(directory, overwrite) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        write_text(partial / f"{MODULE}.py", code)
        write_text(partial / "config.json", json.dumps(settings, indent=2, sort_keys=True))
    return Path(directory)


def dense_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the original architecture with the effective weights of `model`.

    Only good for saving: buffers that no checkpoint holds stay on the meta device.
    """
    plain = _skeleton(model)
    state = dict(model.state_dict())
    for name, module in list(plain.named_modules()):
        replaced = _submodule(model, name)
        if isinstance(replaced, CompactLinear):
            _fill_linear(module, replaced)
        elif isinstance(replaced, SplitExperts):
            _fuse_experts(module, replaced)
        elif isinstance(replaced, FactoredEmbedding | FactoredHead):
            fill_table(plain, module, replaced)
        else:
            continue
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    plain.load_state_dict({key: state[key] for key in plain.state_dict()}, assign=True)
    return plain


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    config = type(model.config).from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    _count_experts(model, config)
    if any(isinstance(module, FactoredHead) for module in model.modules()):
        config.tie_word_embeddings = True
    with torch.device("meta"):
        plain = nn.Module.to(type(model)(config), model.dtype)
    if model.can_generate():
        plain.generation_config = model.generation_config
    return plain


def _count_experts(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Write the number of experts that are left into `config`, which has one for all blocks.

    Raises ModelError where blocks have different numbers, or no field holds the number.
    """
    experts = [module for module in model.modules() if isinstance(module, SplitExperts)]
    if not any(module.removed for module in experts):
        return
    before, left = {len(m.down) for m in experts}, {len(m.kept) for m in experts}
    if len(before) > 1 or len(left) > 1:
        raise ModelError(
            f"blocks have {min(left)} to {max(left)} experts, and the original architecture "
            "has one number for all; remove them with experts.uniform=true, or export it "
            "--self-contained"
        )
    fields = [
        name
        for name, value in vars(config).items()
        if type(value) is int and value in before and _counts_routed(name)
    ]
    for name in fields:
        setattr(config, name, min(left))
    if not fields:
        raise ModelError(
            f"no field of {type(config).__name__} is the number of experts ({before.pop()}); "
            "export it --self-contained instead"
        )


def _counts_routed(name: str) -> bool:
    return "expert" in name and "shared" not in name and not name.endswith("per_tok")


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:  # inside a module that was replaced as a whole
        return None


def _fill_linear(module: nn.Module, layer: CompactLinear) -> None:
    weight, bias = layer.dense()
    if bias is not None and get_bias(module) is None:
        raise ModelError(
            "the compressed layers have biases that the original architecture does not have; "
            "export it with --self-contained instead"
        )
    dtype = get_weight(module).dtype
    module.to_empty(device=weight.device).to(dtype)
    set_weight(module, weight)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(dtype))


def _fuse_experts(fused: nn.Module, split: SplitExperts) -> None:
    transposed = bool(getattr(fused, "is_transposed", False))
    for name, parameter in list(fused._parameters.items()):
        linears = split.down if name.startswith("down_proj") else split.up
        tensors = [_dense_of(linears[expert]) for expert in split.kept]
        if name.endswith("_bias"):
            stacked = torch.stack([_present(bias) for _, bias in tensors])
        else:
            stacked = torch.stack([w.T if transposed else w for w, _ in tensors])
        assert parameter is not None
        assert parameter.shape == stacked.shape
        fused._parameters[name] = nn.Parameter(stacked.to(parameter.dtype).contiguous())


def _dense_of(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    if isinstance(linear, CompactLinear):
        return linear.dense()
    return get_weight(linear).detach(), get_bias(linear)


def _present(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias.detach()
