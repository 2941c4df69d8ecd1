"""The named recipes: this library's own, and each paper's as published.

A paper's preset is its metric, its ranks and its storage together, on plain factors unless the
paper stores another way. Other combinations are written METHOD/ALLOCATION/LAYER.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from spectrim.errors import InputError, did_you_mean
from spectrim.pipeline.recipe import Recipe, recipe_from
from spectrim.pipeline.renamed import PRESETS as RENAMED

_PLAIN = {
    "allocation": "uniform",
    "layer": "lowrank",
    "hessian_averaging": {"weight": 0.0},
    "probe": {"per_layer": False, "joint": False},
}
"""Uniform ranks, plain factors, no correction of predicted curves: what most papers report."""
_TRAINED = {"precision": "bfloat16", "optimizer": "kfac_adamw", "lr_scaling": "kl"}
_TOKENS = 500_000
"""Tokens that the trained recipes read once in each of their stages."""
_BLOCKS = {
    "name": "block_distillation",
    "options": {"tokens": _TOKENS, "out_metric": "gradient", **_TRAINED},
    "tokens": _TOKENS,
}
_WHOLE_MODEL = {
    "name": "distillation",
    "options": {"tokens": _TOKENS, "learning_rate": 4.5e-4, **_TRAINED},
    "tokens": _TOKENS,
}
_FOR_A_TASK = {
    "method": "svd",
    "layer": "lowrank",
    "budget": 0.2,
    "refinement": [{"name": "finetune"}],
}

_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "default": (
        (
            "OBD-LLM, ranks by predicted loss, pivoted storage; curves are measured, nothing "
            "is trained."
        ),
        {},
    ),
    "fast": (
        "The default on 64 sequences with predicted curves only: a first look.",
        {
            "calibration": {"sequences": 64},
            "hessian_averaging": _PLAIN["hessian_averaging"],
            "probe": _PLAIN["probe"],
        },
    ),
    "closed_form": (
        (
            "The default, then every layer is solved again on the inputs that the compressed "
            "model gives it (SAES-SVD); nothing is trained."
        ),
        {"refinement": [{"name": "saes_svd"}]},
    ),
    "best": (
        (
            "The default, then blocks and the whole model are trained against the original on "
            "half a million tokens: the least damage."
        ),
        {"refinement": [_BLOCKS, _WHOLE_MODEL]},
    ),
    "task": (
        (
            "A model for one task: OBD bases, removed at once by the curvature of the task's "
            "loss, then fine-tuned; needs --task."
        ),
        {
            "budget": 0.2,
            "calibration": {"sequences": 1024, "labels": "sampled", "temperature": 4.0},
            "pruning": {
                "importance": "fisher",
                "importance_options": {"temperature": 1.0},
                "gradient_term": "none",
                "steps": 0,
                "prune_steps": 1,
                "scoring_examples": 512,
            },
            "refinement": [{"name": "finetune"}],
        },
    ),
}
_PAPERS: dict[str, tuple[str, dict[str, Any]]] = {
    "svd": ("Plain truncated SVD, uniform ranks.", _PLAIN | {"method": "svd"}),
    "fwsvd": (
        "FWSVD: rows weighted by their Fisher information.",
        _PLAIN | {"method": "fwsvd"},
    ),
    "asvd": (
        "ASVD: channels weighted by mean input magnitude, ranks by its search.",
        _PLAIN
        | {
            "method": "asvd",
            "allocation": "asvd_search",
            "probe": {"per_layer": True, "joint": False},
        },
    ),
    "svd_llm": (
        "SVD-LLM: inputs whitened, uniform ranks; nothing is trained.",
        _PLAIN | {"method": "svd_llm"},
    ),
    "svd_llm_lora": (
        "SVD-LLM with its parameter update: one factor after the other by LoRA.",
        _PLAIN | {"method": "svd_llm", "refinement": [{"name": "svd_llm_lora"}]},
    ),
    "svd_llm_v2": (
        "SVD-LLM V2: inputs whitened, ranks by truncation loss within each layer type.",
        _PLAIN | {"method": "svd_llm", "allocation": "svd_llm_v2"},
    ),
    "gfwsvd": (
        "GFWSVD: whitened by a Kronecker fit of the Fisher information.",
        _PLAIN | {"method": "gfwsvd"},
    ),
    "obd_llm": (
        "OBD-LLM: inputs and output gradients whitened (damping 0.1), uniform ranks.",
        _PLAIN | {"method": "obd", "method_options": {"damping": 0.1}},
    ),
    "afm": (
        "AFM: principal directions of the outputs, biases take their mean.",
        _PLAIN | {"method": "afm"},
    ),
    "lord": (
        "LoRD: AFM's solver with ranks aligned to the hardware.",
        _PLAIN | {"method": "afm", "rank_multiple": "auto"},
    ),
    "d_rank": (
        "D-Rank: inputs whitened, ranks by effective rank within each layer type.",
        _PLAIN | {"method": "svd_llm", "allocation": "d_rank"},
    ),
    "welore": (
        "WeLore: plain SVD, one threshold on normalized singular values; reads no data.",
        _PLAIN | {"method": "svd", "allocation": "welore"},
    ),
    "zs_svd": (
        "ZS-SVD: inputs whitened, components dropped so that first-order effects cancel.",
        _PLAIN | {"method": "svd_llm", "allocation": "zs_svd"},
    ),
    "saes_svd": (
        "SAES-SVD: SVD-LLM, then every layer is solved again with error compensation.",
        _PLAIN | {"method": "svd_llm", "refinement": [{"name": "saes_svd"}]},
    ),
    "aa_svd": (
        "AA-SVD: SVD-LLM, anchored solutions layer by layer, then blocks are trained.",
        _PLAIN
        | {
            "method": "svd_llm",
            "refinement": [
                {"name": "aa_svd", "options": {"original_input_weight": 1.0}},
                {"name": "block_distillation"},
            ],
        },
    ),
    "basis_sharing": (
        "Basis Sharing: SVD-LLM, one basis for each pair of adjacent layers of one type.",
        _PLAIN | {"method": "svd_llm", "sharing": {"rule": "adjacent", "accept": "all"}},
    ),
    "concatenated_svd": (
        "Concatenated SVD: layers share a basis where their joint error stays small.",
        _PLAIN | {"method": "svd_llm", "sharing": {"rule": "clustered", "accept": "all"}},
    ),
    "cospadi": (
        "CoSpaDi: a dictionary with sparse coefficients for each whitened weight.",
        _PLAIN | {"method": "svd_llm", "layer": "sparse_dictionary"},
    ),
    "bsi": (
        (
            "BSI: SVD bases scored with Hutchinson's probes by the size of the gradient term, "
            "removed in steps; needs --task."
        ),
        _FOR_A_TASK | {"pruning": {"importance": "hutchinson", "gradient_term": "absolute"}},
    ),
    "basel": (
        (
            "Basel: SVD bases kept by the size of their singular values, removed in steps; "
            "needs --task."
        ),
        _FOR_A_TASK | {"pruning": {"importance": "magnitude", "rule": "energy"}},
    ),
    "eora": (
        "EoRA: a quantized model with low-rank corrections; for `spectrim quantize`.",
        {"method": "eora", "allocation": "uniform", "correction": {"rank": 128}},
    ),
}
_ALL = _OWN | _PAPERS
PAPERS = tuple(_PAPERS)
"""Names of the presets that reproduce a paper."""
SUMMARIES = {name: summary for name, (summary, _) in _ALL.items()}
"""One sentence about each preset."""


class _Presets(Mapping[str, Recipe]):
    """Recipes by name, each validated when it is first read."""

    def __getitem__(self, name: str) -> Recipe:
        return _preset(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_ALL)

    def __len__(self) -> int:
        return len(_ALL)

    def __contains__(self, name: object) -> bool:
        return name in _ALL


@cache
def _preset(name: str) -> Recipe:
    return recipe_from(_ALL[name][1], f"preset {name}")


PRESETS: Mapping[str, Recipe] = _Presets()
"""Recipes by name, as `--recipe NAME` takes them."""


def load_recipe(name_or_path: str) -> Recipe:
    """Return a preset by name, or the recipe in a YAML file. Raises InputError."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    from spectrim.runtime.files import is_file, read_mapping

    path = Path(name_or_path)
    if not is_file(path):
        raise unknown_preset(name_or_path)
    return recipe_from(read_mapping(path), str(path))


def unknown_preset(name: str) -> InputError:
    """Return the error for a name that is neither a preset nor a file."""
    if name in RENAMED:
        return InputError(f"recipe '{name}' is now named {RENAMED[name]}")
    return InputError(
        f"no recipe '{name}'{did_you_mean(name, PRESETS)}: expected a YAML file or one of "
        f"{', '.join(PRESETS)}"
    )


__all__ = ["PAPERS", "PRESETS", "SUMMARIES", "load_recipe", "unknown_preset"]
