"""Adapters in the spectral domain: the part of `W = U S V^T` that trains. One file each.

A module declares `TITLE` (its configuration is `{TITLE}Config`), `REFERENCE`, `LEARNING_RATE`
(where `spectrim finetune` begins), a frozen dataclass `Options`, and

    start(weight, options)   -> Parts: tensors that train, at a zero update, and fixed ones
    pair(tensors, options)   -> (B, A) with the update W' - W = B A
    delta(tensors, options)  -> W' - W, in place of `pair` where it is no product of small ones

optionally `penalty(tensors, options)`, a regularizer of one layer, `REQUIRES` (statistics), and
`STORED = True` where the fixed tensors cannot be computed from W again.

They are tuners of PEFT (extra `peft`), registered by their names:

    from spectrim.adapters import SVFitConfig
    adapted = peft.get_peft_model(model, SVFitConfig())

`save_pretrained`, `PeftModel.from_pretrained`, `merge_and_unload` and transformers' `Trainer`
work as they do for LoRA, and `to_lora` gives a plain LoRA that loads without spectrim. To load
one in a new process, call `register()` first, or import any configuration from here.
"""

from __future__ import annotations

from typing import Any

from spectrim.registry import Registry

ADAPTERS = Registry("adapter", "spectrim.adapters", declares="start")

_ORIGINS = {
    "LoraExport": "_export",
    "penalty": "_tuner",
    "save_lora": "_export",
    "to_lora": "_export",
    "with_statistics": "_statistics",
}


def register() -> None:
    """Tell PEFT about all adapters. Raises InputError where PEFT is missing."""
    _load_tuner().register()


def config_class(name: str) -> type[Any]:
    """Return the configuration class of an adapter. Raises UnknownNameError, InputError."""
    return _load_tuner().config_class(name)


def _load_tuner() -> Any:
    from importlib import import_module

    from spectrim.errors import InputError

    try:
        import_module("peft")
    except ImportError as error:
        raise InputError(
            f"PEFT is not installed ({error}): pip install 'spectrim[peft]'"
        ) from None
    return import_module("spectrim.adapters._tuner")


def __getattr__(name: str) -> Any:
    if name in _ORIGINS:
        from importlib import import_module

        _load_tuner()
        return getattr(import_module(f"spectrim.adapters.{_ORIGINS[name]}"), name)
    if name.endswith("Config"):
        for entry in ADAPTERS.names():
            if name == f"{ADAPTERS.get(entry).TITLE}Config":
                return config_class(entry)
    raise AttributeError(f"module 'spectrim.adapters' has no attribute '{name}'")


def __dir__() -> list[str]:
    configs = [f"{ADAPTERS.get(name).TITLE}Config" for name in ADAPTERS.names()]
    return sorted(["ADAPTERS", "config_class", "register", *_ORIGINS, *configs])


__all__ = [
    "ADAPTERS",
    "LoraExport",
    "config_class",
    "penalty",
    "register",
    "save_lora",
    "to_lora",
    "with_statistics",
]
