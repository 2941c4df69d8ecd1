"""One family compressed, saved, loaded by plain `from_pretrained`, compared and generated."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

import spectrim
from spectrim.errors import SpectrimError
from spectrim.models.linear import is_linear
from spectrim.models.replace import factored_layers
from spectrim.models.targets import decoder_blocks
from spectrim.pipeline.plan import factorize, plan
from spectrim.pipeline.recipe import (
    CalibrationRecipe,
    HessianAveragingRecipe,
    ProbeRecipe,
    Recipe,
)
from spectrim.pipeline.replace import replace_layers
from tests.families.configs import Family
from tests.runs import text_file
from tests.tiny_models import tiny_tokenizer, tiny_tokens
from tests.tolerances import FAMILY_ABSOLUTE

PROMPT, NEW = 8, 6


@dataclass(frozen=True)
class Outcome:
    """What became of one family.

    Attributes:
        status: "full", "partly dense", "refused" or "failed".
        detail: the line of the refusal or failure.
        dense: layers of the blocks that stay dense, by name, and why.
        factored: how many are in two factors.
        cached: whether generating with a cache was checked; some models have none.
    """

    status: str
    detail: str = ""
    dense: dict[str, str] = field(default_factory=dict)
    factored: int = 0
    cached: bool = True


def recipe(text: Path) -> Recipe:
    """One short pass, no probes, every layer at the same rank ratio."""
    return Recipe(
        budget=0.7,
        allocation="uniform",
        calibration=CalibrationRecipe(
            data=str(text), sequences=8, length=24, tokens_per_batch=96
        ),
        probe=ProbeRecipe(per_layer=False, joint=False),
        hessian_averaging=HessianAveragingRecipe(weight=0.0),
    )


def run_family(family: Family, directory: Path) -> Outcome:
    """Never raises: what the library or the check says is in the outcome."""
    model = family.build()
    expected = generated(model)
    text = text_file(directory / "text.txt")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            decomposition = factorize(model, tiny_tokenizer(), recipe(text))
            smaller = replace_layers(model, decomposition, plan(decomposition, recipe(text)))
        spectrim.save(smaller, tiny_tokenizer(), str(directory / "out"))
    except SpectrimError as error:
        return Outcome("refused", str(error))
    except Exception as error:  # a traceback is what this is looking for
        return Outcome("failed", f"{type(error).__name__}: {error}".splitlines()[0])
    if fault := _fault(smaller, directory / "out", expected):
        return Outcome("failed", fault)
    reasons = decomposition.provenance.get("dense", {})
    names = [name for name in linear_layers(smaller) if name not in decomposition.shapes]
    dense = {name: reasons.get(name, "") for name in names}
    factored = len(list(factored_layers(smaller)))
    if unsaid := [name for name, reason in dense.items() if not reason]:
        return Outcome("failed", f"dense without a word: {', '.join(unsaid)}", dense, factored)
    if dense and not any("dense" in str(warning.message) for warning in caught):
        return Outcome("failed", "dense layers without a warning", dense, factored)
    status = "partly dense" if dense else "full"
    return Outcome(status, "", dense, factored, isinstance(expected, list))


def _fault(smaller: PreTrainedModel, directory: Path, expected: Any) -> str | None:
    """What is wrong with the checkpoint of `smaller`, if anything."""
    try:
        loaded = AutoModelForCausalLM.from_pretrained(directory).eval()
        difference = float((logits(loaded) - logits(smaller)).abs().max())
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if not difference <= FAMILY_ABSOLUTE:
        return f"logits of the loaded model differ by {difference:.1e}"
    found = generated(loaded)
    if isinstance(expected, str):
        return None
    if isinstance(found, str):
        return f"generate: {found}"
    if expected[0] == expected[1] and found[0] != found[1]:
        return "generates otherwise with a cache than without"
    return None


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=tiny_tokens(), use_cache=False).logits


def generated(model: PreTrainedModel) -> list[list[int]] | str:
    """Greedy tokens with and without a cache, or why the model itself cannot generate."""
    ids = tiny_tokens(1, PROMPT)
    try:
        return [_greedy(model, ids, cached).tolist() for cached in (True, False)]
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _greedy(model: Any, ids: Tensor, cached: bool) -> Tensor:
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        use_cache=cached,
    )[0]


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers of the blocks and of what keeps several in one parameter."""
    factored = tuple(name + "." for name, _ in factored_layers(model))
    inside = tuple(name + "." for name, _ in decoder_blocks(model))
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(inside)
        and not name.startswith(factored)
        and (is_linear(module) or _is_fused(module))
    ]


def _is_fused(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    stacks = [p for p in module._parameters.values() if p is not None and p.dim() == 3]
    return any(min(stack.shape[1:]) > 4 for stack in stacks)


def quiet() -> None:
    logging.set_verbosity_error()
