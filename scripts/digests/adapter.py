"""Names that differ between revisions: the new one is looked for first, then the old one.

A rename leaves this file alone: it has to run at old revisions too.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

import spectrim

ENTRIES = {
    "aa_svd": "anchored",
    "block_distillation": "block",
    "bsi": "basis_importance",
    "d_rank": "effective_rank",
    "distillation": "end_to_end",
    "finetune": "next_token",
    "saes_svd": "saes",
    "scaled_fisher": "calibrated",
    "svd_llm_lora": "lora",
    "svd_llm_update": "shifted",
    "welore": "heavy_tail",
    "zs_svd": "zero_sum",
}
"""Methods, allocations, refinements and importances. No two of one registry share a name."""
WORDS: dict[str, tuple[str, ...]] = {
    # fields of the recipe and of its parts
    "hessian_averaging": ("path",),
    "at_budget": ("budget",),
    "data_fraction": ("share",),
    "below_budget": ("below",),
    "probe": ("measure",),
    "per_layer": ("layers",),
    "patterns": ("types",),
    "group_size": ("window", "group"),
    "max_error": ("error",),
    "error_estimate": ("estimate",),
    "accept": ("keep",),
    "pruning": ("selection",),
    "gradient_term": ("slope",),
    "prune_steps": ("events",),
    "prune_until": ("pruning_share",),
    "scoring_examples": ("scoring_rows",),
    "trainable": ("tuned",),
    "factor_lr": ("bases_rate",),
    "extra_rank": ("new_bases",),
    "svd_cutoff": ("smallest",),
    "quantization": ("quantisation",),
    "backend": ("base",),
    "correction": ("compensation",),
    "quantizer": ("base",),
    "quantizer_options": ("base_options",),
    "bytes": ("path_bytes",),
    "covariance_bytes": ("statistics_bytes",),
    "covariance_format": ("statistics_form",),
    "wide_covariances": ("wide",),
    # options of methods
    "batch_size": ("sequences_per_step", "rows_per_step"),
    "warmup_ratio": ("warmup",),
    "max_grad_norm": ("clip",),
    "optimizer": ("optimizer_basis", "basis"),
    "lr_scaling": ("scaling",),
    "original_input_weight": ("mix",),
    # values
    "absolute": ("size",),
    "energy": ("mass",),
    "singular_values": ("coordinates",),
    "factors": ("bases",),
    "block_diagonal": ("blocks",),
    "kfac_adamw": ("kfac_eigen", "covariances"),
    "kl": ("divergence",),
    # presets
    "task": ("bsi",),
}


def find(*places: str) -> Any:
    """Return the first of "module:attribute" inside spectrim that exists."""
    for place in places:
        module, _, name = place.rpartition(":")
        try:
            return getattr(importlib.import_module(f"spectrim.{module}".rstrip(".")), name)
        except (ImportError, AttributeError):
            continue
    raise LookupError(f"this revision has none of {', '.join(places)}")


METHODS = find("decompositions:METHODS", "decompositions:DECOMPOSITIONS")
ALLOCATORS = find("allocation:ALLOCATORS")
LAYERS = find("layers:LAYERS")
REFINEMENTS = find("refinement:REFINEMENTS")
QUANTIZERS = find("layers.quantized:QUANTIZERS", "compressors:COMPRESSORS")
IMPORTANCE = find("pruning.importance:IMPORTANCE", "selection.importance:IMPORTANCE")
Recipe = find(":Recipe")
_recipe_from = find("pipeline.recipe:recipe_from", "recipe:recipe_from")
PRESETS = find("pipeline.presets:PRESETS", "presets:PRESETS")
PruningOptions = find("pruning:PruningOptions", "selection:SelectionOptions")
FinetuneSettings = find(":FinetuneSettings")
OPTIONS_OF = {
    "method_options": ("method", METHODS),
    "allocation_options": ("allocation", ALLOCATORS),
    "layer_options": ("layer", LAYERS),
    "importance_options": ("importance", IMPORTANCE),
    "quantizer_options": ("quantizer", QUANTIZERS),
    "options": ("name", REFINEMENTS),
}
REGISTRY_OF = dict(OPTIONS_OF.values())


def pick(word: str, available: Any) -> str:
    """Return `word`, or the old word for it that is available."""
    old = (ENTRIES[word],) if word in ENTRIES else ()
    for candidate in (word, *old, *WORDS.get(word, ())):
        if candidate in available:
            return candidate
    raise LookupError(f"{word} is none of {', '.join(available)}")


def new_name(entry: str) -> str:
    return {old: new for new, old in ENTRIES.items()}.get(entry, entry)


def new_names(registry: Any) -> list[str]:
    return sorted(map(new_name, registry.names()))


def fit(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Translate new fields and values into those that the dataclass `cls` has."""
    hints = get_type_hints(cls)
    return {
        (field := pick(key, hints)): _fit_value(hints[field], key, value, values)
        for key, value in values.items()
    }


def _fit_value(hint: Any, key: str, value: Any, beside: dict[str, Any]) -> Any:
    if key in OPTIONS_OF:
        chooser, registry = OPTIONS_OF[key]
        default = {"method": "obd", "quantizer": "rtn"}.get(chooser, "")
        entry = registry.get(pick(beside.get(chooser, default), registry.names()))
        return fit(getattr(entry, "Options", object), value)
    if key in REGISTRY_OF and isinstance(value, str):
        names = REGISTRY_OF[key].names()
        return pick(value, names) if value in ENTRIES else value
    inner = [hint, *get_args(hint)]
    if isinstance(value, dict):
        return fit(next(c for c in inner if hasattr(c, "__dataclass_fields__")), value)
    if isinstance(value, list | tuple):
        return [_fit_value(get_args(hint)[0], key, item, {}) for item in value]
    choices = [c for part in inner if get_origin(part) is Literal for c in get_args(part)]
    return pick(value, choices) if isinstance(value, str) and choices else value


def recipe_from(values: dict[str, Any], source: str) -> Any:
    """Read a recipe, its rows cut as every revision cuts them."""
    calibration = get_type_hints(Recipe)["calibration"]
    if "rows" in get_type_hints(calibration):
        values = values | {"calibration": values.get("calibration", {}) | {"rows": "packed"}}
    return _recipe_from(values, source)


def make_recipe(values: dict[str, Any]) -> Any:
    return recipe_from(fit(Recipe, values), "logit_digests")


def compress(model: Any, tokenizer: Any, recipe: Any) -> Any:
    """Run the whole trip: by one call where there is one, else step by step."""
    whole = find(":compress", ":replace_layers")
    if "tokenizer" in inspect.signature(whole).parameters:
        result = whole(model, tokenizer, recipe)
        return next(getattr(result, n) for n in ("model", "compressed") if hasattr(result, n))
    if getattr(recipe, pick("pruning", vars(recipe))) is not None:
        pruned = find(":prune_for_task", ":specialise")(model, tokenizer, recipe)
        smaller, plan = pruned.model, pruned.plan
    else:
        found = find(":factorize", ":factorise")(model, tokenizer, recipe)
        plan = spectrim.plan(found, recipe)
        recipe = recipe.at_budget(plan.budget)
        smaller = find(":replace_layers", ":compress")(model, found, plan)
    smaller = find("pipeline.embedding:compress_embeddings", "pipeline:compress_embeddings")(
        model, smaller, tokenizer, recipe
    )
    if recipe.refinement:
        smaller = spectrim.refine(model, smaller, tokenizer, recipe)
    return find(":quantize_factors", ":quantise")(smaller, plan, recipe)


def compress_offloaded(directory: str, output: str, recipe: Any) -> None:
    """Compress a checkpoint whose tensors stay on disk."""
    open_ = find(
        "checkpoint:open_offloaded",
        "checkpoint.save_sharded:open_streamed",
        "hub.stream:open_streamed",
    )
    save = find("checkpoint.save_sharded:save_streamed", "hub.stream:save_streamed")
    source = open_(directory)
    try:
        sizes = find("models.offload:StreamSizes")(4, 4, 0)
    except LookupError:
        _stream(source, output, recipe, save)
        return
    source.streamed.sizes = sizes
    with find("runtime.cache:lasting")(None) as cache:
        given = source.streamed, source.tokenizer, recipe, find(":RunContext")(cache)
        result = spectrim.compress(*given)
        options = find("checkpoint:SaveOptions")()
        save(result.model, result.parts, source.tokenizer, output, options)


def _stream(source: Any, output: str, recipe: Any, save: Any) -> None:
    """Compress an opened checkpoint at a revision where that was a pipeline of its own."""
    run = find("runtime.context:RunContext", "refinement:Progress")()
    sizes = find("pipeline.streaming:StreamSizes")(4, 4, 0)
    recipe = find("pipeline.streaming:for_streaming", "pipeline.streaming:streamable")(recipe)
    decomposed = find(
        "pipeline.streaming:decompose_streamed", "pipeline.streaming:streamed_decomposition"
    )
    with decomposed(source, recipe, sizes, run) as decomposition:
        plan = spectrim.plan(decomposition, recipe)
        replaced = find("pipeline.streaming:CompressedParts")
        parts = replaced(source, decomposition, plan, torch.float32)
        options = find("checkpoint:SaveOptions", "hub:SaveOptions")()
        save(source, parts, output, parts.config(), options)
