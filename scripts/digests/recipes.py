"""Recipes of all kinds, each with the name of its case, in the new words."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from digests.adapter import ALLOCATORS, IMPORTANCE, LAYERS, METHODS, REFINEMENTS, new_names

MODELS = ("gqa", "gpt2", "moe")
BASE: dict[str, Any] = {
    "budget": 0.6,
    "rank_multiple": 2,
    "save_dtype": "float32",
    "calibration": {
        "data": "text.txt",
        "sequences": 8,
        "length": 24,
        "tokens_per_batch": 96,
    },
    "hessian_averaging": {"data_fraction": 0.5},
    "probe": {"tokens": 48, "joint_tokens": 192},
}
QUICK: dict[str, dict[str, Any]] = {
    "block_distillation": {"epochs": 1},
    "distillation": {"tokens": 500},
    "finetune": {"steps": 3, "batch_size": 8},
    "svd_llm_lora": {"epochs": 1, "learning_rate": 1e-2},
    "aa_svd": {"original_input_weight": 0.5},
}
TRAINED = ("block_distillation", "distillation")
PRUNING = {"steps": 3, "prune_steps": 2, "batch_size": 4, "scoring_examples": 8}
SLOW_IMPORTANCE = {"hutchinson": {"probes": 1}, "scaled_fisher": {"rows": 8}}
TASK = {"budget": 0.4, "task": {"data": "task.jsonl"}, "calibration": {"sequences": 16}}


def combinations(model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for method in new_names(METHODS):
        for allocation in ("uniform", "loss_optimal"):
            changes = {"method": method, "allocation": allocation, "layer": "lowrank"}
            yield f"method/{method}/{allocation}", changes
    for allocation in new_names(ALLOCATORS):
        yield f"allocation/{allocation}", {"allocation": allocation}
    for layer in new_names(LAYERS):
        yield f"layer/{layer}", {"layer": layer, "allocation": "uniform"}
    for name in new_names(REFINEMENTS):
        for layer in ("lowrank", "pivoted"):
            step = {"name": name, "options": QUICK.get(name, {})}
            yield f"refinement/{name}/{layer}", {"layer": layer, "refinement": [step]}
    for rule in ("adjacent", "clustered", "same_input"):
        if (model, rule) == ("gpt2", "same_input"):
            continue  # no two layers of GPT-2 read the same input
        sharing = {"rule": rule, "accept": "all"}
        yield f"sharing/{rule}", {"sharing": sharing, "layer": "lowrank"}
    for quantizer, bits in (("rtn", 8), ("rtn", 4), ("nf4", 4), *torchao(("torchao", 8))):
        group = 32 if quantizer == "torchao" else 8
        given = {"backend": quantizer, "bits": bits, "group_size": group}
        changes = {"quantization": given, "layer": "lowrank", "budget": 0.2}
        yield f"quantization/{quantizer}_{bits}", changes
    for method in ("afm", "obd", "svd"):
        yield f"embeddings/{method}", embeddings(method)


def torchao(*names: Any) -> tuple[Any, ...]:
    return names if find_spec("torchao") else ()


def embeddings(method: str) -> dict[str, Any]:
    return {"embeddings": {"method": method, "budget": 0.5}, "allocation": "uniform"}


def quick_pruning(importance: str) -> dict[str, Any]:
    return TASK | {"pruning": {"importance": importance, **PRUNING}}


def corrections() -> Iterator[tuple[str, dict[str, Any]]]:
    names = ["rtn", "nf4", "sparse_2_4", "wanda_2_4", *torchao("torchao")]
    for quantizer in names:
        options = {"rtn": {"bits": 3, "group": 8}}.get(quantizer, {})
        given = {"quantizer": quantizer, "quantizer_options": options, "rank": 3}
        yield f"correction/{quantizer}", {"correction": given, "allocation": "uniform"}
    for method in ("eora", "obd", "svd"):
        yield f"correction/rtn/{method}", {"correction": {"rank": 3}, "method": method}
    yield "correction/rtn/bytes", {"correction": {"bytes": 5000}}
    yield "correction/rtn/alone", {"correction": {"rank": 0}}


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Recipe fields that the combinations leave at their defaults."""
    calibration = BASE["calibration"]
    for name, changes in {
        "low_rank": {"covariance_bytes": 100_000},
        "block_diagonal": {"covariance_bytes": 100_000, "covariance_format": "block_diagonal"},
        "full": {"wide_covariances": "full"},
        "sampled": {"labels": "sampled", "temperature": 2.0},
    }.items():
        yield f"calibration/{name}", {"calibration": calibration | changes}
    yield "averaging/none", {"hessian_averaging": {"weight": 0.0}}
    yield "averaging/all", {"hessian_averaging": {"at_budget": 0.5, "below_budget": 2.0}}
    yield "probe/none", {"probe": {"per_layer": False, "joint": False}}
    yield "probe/per_layer", {"probe": {"tokens": 48, "joint": False}}
    yield "layers/some", {"include": ["mlp", "lm_head"], "exclude": ["up_proj"]}
    yield "damping", {"method_options": {"damping": 0.05}}
    for variant in ("orthogonal", "ksvd"):
        options = {"variant": variant, "rounds": 5}
        yield f"sparse_dictionary/{variant}", dictionary(options)
    for estimate in ("weyl", "residual", "incremental"):
        sharing = {"rule": "clustered", "group_size": 3, "error_estimate": estimate}
        yield f"sharing/{estimate}", {"sharing": sharing | {"max_error": 0.6, "accept": "all"}}
    cheaper = {"rule": "same_input", "accept": "cheaper", "budget": 0.3}
    yield "sharing/cheaper", {"sharing": cheaper, "layer": "lowrank", "budget": 0.3}
    named = {"rule": "adjacent", "patterns": ["q_proj"], "accept": "all"}
    yield "sharing/patterns", {"sharing": named}
    yield "refinement/several", refined(("saes_svd", {}), ("finetune", QUICK["finetune"]))
    yield "refinement/aa_svd/search", refined(("aa_svd", {}))
    for name in TRAINED:
        kfac = {"optimizer": "kfac_adamw", "lr_scaling": "kl", "batch_size": 2}
        clipped = {"max_grad_norm": 0.5, "warmup_ratio": 0.2, "precision": "bfloat16"}
        yield f"refinement/{name}/kfac", refined((name, QUICK[name] | kfac))
        yield f"refinement/{name}/bfloat16", refined((name, QUICK[name] | clipped))
    gradient = QUICK["block_distillation"] | {"out_metric": "gradient"}
    yield "refinement/block_distillation/gradient", refined(("block_distillation", gradient))


def dictionary(options: dict[str, Any]) -> dict[str, Any]:
    return {"layer": "sparse_dictionary", "layer_options": options, "allocation": "uniform"}


def refined(*steps: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"refinement": [{"name": name, "options": options} for name, options in steps]}


def prunings() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in new_names(IMPORTANCE):
        term = "absolute" if name == "first_order" else "none"
        options = SLOW_IMPORTANCE.get(name, {})
        given = PRUNING | {"importance_options": options, "gradient_term": term}
        yield f"pruning/{name}", TASK | {"pruning": {"importance": name, **given}}
    for name, changes in {
        "energy": {"importance": "magnitude", "rule": "energy"},
        "signed": {"gradient_term": "signed"},
        "absolute": {"gradient_term": "absolute", "prune_until": 0.5, "extra_rank": 2},
        "none": {"gradient_term": "none", "svd_cutoff": 0.2},
        "factors": {"trainable": "factors", "factor_lr": 1e-3},
    }.items():
        yield f"pruning/{name}", TASK | {"pruning": {**PRUNING, **changes}}
    step = {"name": "finetune", "options": QUICK["finetune"]}
    published = {"method": "svd", "layer": "lowrank", "refinement": [step]}
    given = {"importance": "hutchinson", "importance_options": {"probes": 1}}
    for term in ("signed", "absolute"):
        pruning = {"pruning": {**given, **PRUNING, "gradient_term": term}}
        yield f"pruning/bsi/{term}", TASK | published | pruning


FINETUNING: dict[str, dict[str, Any]] = {
    "factors": {},
    "lora": {"lora": 2},
    "qlora_int4": {"lora": 2, "quantize_base": "int4"},
    "qlora_nf4": {"lora": 2, "quantize_base": "nf4"},
}
