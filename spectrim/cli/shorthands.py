"""Options of the command line that stand for several fields of a recipe."""

from __future__ import annotations

from typing import Any

QUANTIZERS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8},
    "int4": {"bits": 4},
    "int4-gptq": {"bits": 4, "backend": "gptq"},
    "nf4": {"bits": 4, "backend": "nf4", "group_size": 64},
}
"""Values of `--quantize`, with the fields of the recipe that each stands for."""
SHORTHANDS: dict[str, tuple[Any, ...]] = {
    "ratio": (float | None, None, "Fraction to remove: 0.2 is --budget 0.8."),
    "latency_budget": (
        float | None,
        None,
        "Fraction of the layers' measured time for one token, instead of --budget.",
    ),
    "elastic": (
        str | None,
        "LOW..HIGH",
        "Write one checkpoint of all sizes, like 0.4..0.9, cut when it is loaded.",
    ),
    "experts": (
        str | None,
        "ORDER",
        "Also remove whole experts: predicted_loss, reap (`spectrim ls`).",
    ),
    "refine": (list[str] | None, None, "Refinement to run afterward; repeat for several."),
    "optimizer": (
        str | None,
        None,
        "Optimizer of the refinements (`spectrim ls`), with its own learning rate.",
    ),
    "learning_rate": (float | None, None, "Learning rate of the refinements."),
    "quantize": (
        str | None,
        "|".join(QUANTIZERS),
        "Store factors in fewer bits; the budget then counts bytes.",
    ),
    "task": (
        str | None,
        None,
        "Prune for this task: FILE.jsonl, gsm8k:FILE, math:FILE, arithmetic:train:2000.",
    ),
    "probe": (
        bool | None,
        None,
        "Correct the predicted curves with forward passes.",
        "--probe/--no-probe",
    ),
    "set": (
        list[str] | None,
        "FIELD=VALUE",
        "Set any recipe field (method_options.damping=0.01).",
    ),
}
"""Type, metavar, help and spelling of options that stand for several fields of a recipe."""
