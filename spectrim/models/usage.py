"""See how a model uses its linear layers, by running it on a few tokens.

No table of model types: while the model runs, it is seen what its layers are given and return,
and who reads their tensors.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from spectrim.errors import CheckpointError, ModelError
from spectrim.models.causality import check_causal
from spectrim.models.context import context_length, random_features
from spectrim.models.experts import ExpertCalls
from spectrim.models.hooks import attach_hooks, evaluation_mode
from spectrim.models.kind import CLASSIFIER, IMAGE_TEXT, SEQ2SEQ, SPEECH, kind_of
from spectrim.models.linear import agree, get_bias, get_weight, is_linear
from spectrim.models.replace import share_tied_layers
from spectrim.models.source import ModelSource, open_source
from spectrim.models.weight_reads import WeightReads, watch_weight_reads
from spectrim.runtime.files import read_values

READ = "the model reads their tensors itself"
OTHER_OUTPUT = "their class computes something else than x W^T + b"
NO_TEXT = "text alone does not reach them"
OTHER_INPUT = "they are called with something else than one tensor of vectors"

_TOKENS = 32
_NEW_TOKENS = 2
_SHOWN = 5
_SPECIAL = re.compile(r"_token_(id|index)$")


@dataclass(frozen=True)
class Usage:
    """The way a model uses its layers, as seen on a few tokens.

    Attributes:
        unusable: by name, why a low-rank layer could not take a layer's place.
        split: fused experts that compute the same as one linear layer per expert.
    """

    unusable: dict[str, str] = field(default_factory=dict)
    split: list[str] = field(default_factory=list)


def observe_usage(model: PreTrainedModel | ModelSource) -> Usage:
    """Run the model on a few tokens and return how it uses its layers.

    Raises ModelError for a language model whose attention is not causal, and for one that
    rewrites its weights as it runs.
    """
    source = open_source(model)
    observed: PreTrainedModel = source.model
    if source.whole:
        share_tied_layers(observed)
    experts = ExpertCalls(observed)
    ids = _readable_ids(observed)
    with evaluation_mode(observed), _eager_experts(observed):
        with experts.recorded():
            unusable = unusable_layers(source, lambda: _use(observed, ids))
        kind = kind_of(observed)
        if kind is IMAGE_TEXT and source.whole:
            unread = unread_layers(observed, _inputs(observed, ids))
            unusable = dict.fromkeys(unread, NO_TEXT) | unusable
        if not kind.labeled:
            with source.running(lambda: None):
                check_causal(observed, ids)
        return Usage(unusable, experts.names_that_split())


def load_usage(path: Path) -> Usage:
    """Return a usage by `write_values`. Raises CheckpointError for another file."""
    try:
        values = read_values(path)
        return Usage(dict(values["unusable"]), list(values["split"]))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is not what was stored: {error}") from error


def unusable_layers(
    model: nn.Module | ModelSource, run: Callable[[], object]
) -> dict[str, str]:
    """Return, by layer, why a low-rank layer could not take its place in what `run` does.

    Raises ModelError for a model that rewrites its weights as it runs.
    """
    source = open_source(model)
    modules = source.model.named_modules()
    layers = {name: module for name, module in modules if is_linear(module)}
    unusable: dict[str, str] = {}
    with ExitStack() as stack:
        for name, module in layers.items():
            stack.enter_context(_check_calls(name, module, unusable))
        reads = stack.enter_context(watch_weight_reads(source.model, layers))
        with torch.no_grad(), source.running(reads.settle):
            run()
        reads.settle()
    _check_not_rewritten(reads)
    return unusable | dict.fromkeys(reads.replaced(), READ)


def layers_read(model: nn.Module) -> set[str]:
    """Return the linear layers whose tensors the model reads itself, in place of calling them.

    Empty for a model that does not run on tokens alone.
    """
    layers = {name: module for name, module in model.named_modules() if is_linear(module)}
    with suppress(Exception), _quiet(), evaluation_mode(model), torch.no_grad():
        ids = _readable_ids(model)
        with watch_weight_reads(model, layers) as reads:
            model(input_ids=ids, use_cache=False)
        reads.settle()
        return set(reads.replaced())
    return set()


@torch.no_grad()
def unread_layers(model: nn.Module, inputs: Mapping[str, Any]) -> list[str]:
    """Return the linear layers in the parts of a model, such as a vision tower, that text never
    runs through: children of the model or of its base model.
    """
    base: Any = getattr(model, "base_model", model)
    parts = {
        name: module
        for name, module in model.named_modules()
        if any(module is child for whole in (model, base) for child in whole.children())
        and not isinstance(module, nn.ModuleList | nn.ModuleDict)  # never called themselves
    }
    run: set[nn.Module] = set()
    with attach_hooks((module, lambda m, i: run.add(m)) for module in parts.values()):
        model(**inputs)
    unread = tuple(f"{name}." for name, module in parts.items() if module not in run)
    layers = (name for name, module in model.named_modules() if is_linear(module))
    return [name for name in layers if f"{name}.".startswith(unread)]


def listed(names: Sequence[str]) -> str:
    """Return the first names, and whether there are more."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _check_calls(
    name: str, module: nn.Module, unusable: dict[str, str]
) -> AbstractContextManager[None]:
    """Note in `unusable` whether the layer's first calls are those of a linear layer."""

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() < 2:
            unusable.setdefault(name, OTHER_INPUT)

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if name not in unusable and not agree(output, _linear(module, args[0])):
            unusable[name] = OTHER_OUTPUT

    check_output = [] if _is_plain(module) else [(module, after)]
    return attach_hooks([(module, before)], check_output, with_kwargs=True)


def _is_plain(module: nn.Module) -> bool:
    forwards = (nn.Linear.forward, Conv1D.forward)
    return type(module).forward in forwards and "forward" not in vars(module)


def _linear(module: nn.Module, x: Tensor) -> Tensor | None:
    weight = get_weight(module).detach()
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return None
    return F.linear(x, weight, get_bias(module))


def _check_not_rewritten(reads: WeightReads) -> None:
    if reads.rewritten:
        raise ModelError(
            f"{type(reads.model).__name__} rewrites weights as it runs "
            f"({listed(list(reads.rewritten))}), so what is in memory is not what its "
            "checkpoint holds; it cannot be compressed"
        )


def _use(model: Any, ids: Tensor) -> None:
    """Read the tokens in both modes, and generate after them."""
    inputs = _inputs(model, ids)
    with suppress(Exception), _quiet(), _as_in_training(model):
        model(**inputs)
    _check_text(model, inputs)
    read = {"inputs": ids, "attention_mask": torch.ones_like(ids)}
    if kind_of(model) is SPEECH:
        read = {"input_features": inputs["input_features"]}
    with suppress(Exception), _quiet():  # not every model generates
        model.generate(
            **read,
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            do_sample=False,
        )


def _check_text(model: Any, inputs: Mapping[str, Any]) -> None:
    """Run a model. Raises ModelError for one of images that text alone does not run."""
    if kind_of(model) is not IMAGE_TEXT:
        model(**inputs)
        return
    try:
        model(**inputs)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{type(model).__name__} does not run on text alone ({type(error).__name__}: "
            f"{line}); in Python spectrim.compress_any(model, batches, loss) compresses it"
        ) from error


def _inputs(model: Any, ids: Tensor) -> dict[str, Any]:
    """Return the arguments that the model reads `ids` by, with a target where it takes one."""
    kind = kind_of(model)
    if kind is SPEECH:
        features = random_features(model).to(ids.device, model.dtype)
        return {"input_features": features, "decoder_input_ids": ids, "use_cache": False}
    if kind is SEQ2SEQ:
        return {"input_ids": ids, "decoder_input_ids": ids[:, :-1], "use_cache": False}
    if kind is not CLASSIFIER:
        return {"input_ids": ids, "use_cache": False}
    end = model.config.get_text_config().eos_token_id  # some read the text at its end
    if isinstance(end, int):
        ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], end)], 1)
    return {"input_ids": ids}


def _readable_ids(model: Any) -> Tensor:
    """(1, length) tokens of a text model: none that stands for an image, say."""
    vocabulary = model.get_input_embeddings().num_embeddings
    context = context_length(model) or _TOKENS
    special = _special_ids(model.config.to_dict())
    plain = [i for i in range(min(vocabulary, 1024)) if i not in special] or [0]
    length = max(2, min(_TOKENS, context - _NEW_TOKENS))
    ids = [plain[(7 * i + 3) % len(plain)] for i in range(length)]
    return torch.tensor([ids], device=_device(model))


def _device(model: nn.Module) -> torch.device:
    """Return where the model runs: on the CPU where its parts are read from disk."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def _special_ids(config: Mapping[str, Any]) -> set[int]:
    ids: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict):
            ids |= _special_ids(value)
        elif _SPECIAL.search(str(key)):
            ids |= {i for i in (value if isinstance(value, list) else [value]) if i is not None}
    return ids


@contextmanager
def _eager_experts(model: nn.Module) -> Iterator[None]:
    """Run fused experts one after another: grouped products know no float64."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    chosen = {
        id(config): (config, config._experts_implementation)
        for config in configs
        if getattr(config, "_experts_implementation", None) is not None
    }
    for config, _ in chosen.values():
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in chosen.values():
            config._experts_implementation = implementation


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Put the model in training mode, in which some models change their weights.

    Modules without children stay in evaluation mode: no normalization counts the tokens.
    """
    device = _device(model)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluation_mode(model):
        for module in model.modules():
            module.training = bool(module._modules)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
