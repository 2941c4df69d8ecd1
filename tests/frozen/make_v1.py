"""Write the artefacts in `v1/`, which every later revision has to load.

    python -m tests.frozen.make_v1

Made once, by the last revision before format 2 (package version 0.1.0, checkpoint format 1,
`spectrim-plan-1`). It runs at that revision and not at a later one: it is kept to show how the
files came about. To freeze a later format, write `make_v2.py` and `v2/` beside them.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from safetensors.torch import save_file
from spectrim.calibration.store import save_calibration
from spectrim.hub import export_self_contained
from spectrim.pipeline.quantising import quantise_all
from spectrim.recipe import QuantisationRecipe, Recipe, recipe_from
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

import spectrim
from spectrim import pipeline
from spectrim.planning import save_plan

HERE = Path(__file__).parent / "v1"
ALPHABET = "abcdefghijklmnopqrstuvwxyz ."
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
IDS = torch.tensor([[0, 5, 9, 13, 22, 7, 30]])
Variant = Callable[[], PreTrainedModel]


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def llama(**changes: Any) -> PreTrainedModel:
    return build(LlamaConfig(**{"tie_word_embeddings": False, **SIZES, **changes}))


def tied() -> PreTrainedModel:
    return llama(tie_word_embeddings=True)


def with_biases() -> PreTrainedModel:
    return llama(attention_bias=True, mlp_bias=True)


def two_blocks() -> PreTrainedModel:
    return llama(num_hidden_layers=2)


def mixture() -> PreTrainedModel:
    experts = {"moe_intermediate_size": 8, "num_experts": 3, "num_experts_per_tok": 2}
    return build(Qwen3MoeConfig(**SIZES, **experts, head_dim=6, decoder_sparse_step=1))


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(["<s>", "</s>", "<unk>", *ALPHABET])}
    characters = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=characters, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_text() -> None:
    """Six documents of made-up words, in the working directory."""
    source = random.Random(0)
    words = ["".join(source.choices(ALPHABET, k=5)) for _ in range(40)]
    documents = [" ".join(source.choices(words, k=100)) for _ in range(6)]
    Path("text.txt").write_text("<|endoftext|>".join(documents))


def recipe(**changes: Any) -> Recipe:
    values = {
        "budget": 0.6,
        "calibration": {
            "data": "text.txt",
            "sequences": 8,
            "length": 24,
            "tokens_per_batch": 96,
        },
        "measure": {"tokens": 48, "joint_tokens": 96},
    }
    return recipe_from(values | changes, "make_v1")


def compressed(model: PreTrainedModel, given: Recipe) -> PreTrainedModel:
    decomposition = pipeline.factorise(model, tokenizer(), given)
    chosen = pipeline.plan(decomposition, given)
    smaller = pipeline.compress(model, decomposition, chosen)
    smaller = pipeline.compress_embeddings(model, smaller, tokenizer(), given)
    return pipeline.quantise(smaller, chosen, given)


def of_recipe(make: Callable[[], PreTrainedModel] = llama, **changes: Any) -> Variant:
    return lambda: compressed(make(), recipe(**changes))


def compensated(base: str, rank: int, **options: Any) -> Variant:
    given = {"base": base, "base_options": options, "rank": rank}
    return lambda: pipeline.compensate(llama(), tokenizer(), recipe(compensation=given))


def quantised(base: str, bits: int, budget: float) -> Variant:
    given = {"bits": bits, "base": base, "group": 8}
    changes = {"budget": budget, "layer": "lowrank", "save_dtype": "float32"}
    return of_recipe(quantisation=given, **changes)


def with_adapters() -> PreTrainedModel:
    """Quantised factors, and low-rank adapters that were trained beside them."""
    model = compressed(llama(), recipe(layer="lowrank"))
    quantise_all(model, QuantisationRecipe(4, "nf4", 64))
    settings = pipeline.FinetuneSettings(
        data="text.txt",
        sequences=8,
        length=24,
        lora=2,
        steps=3,
        sequences_per_step=4,
        learning_rate=0.02,
    )
    return pipeline.finetune(model, tokenizer(), settings)


ADJACENT = {"rule": "adjacent", "keep": "all"}
CHECKPOINTS: dict[str, Variant] = {
    "lowrank": of_recipe(layer="lowrank"),
    "lowrank_bias": of_recipe(with_biases, method="obd_bias", layer="lowrank"),
    "pivoted": of_recipe(layer="pivoted"),
    "pivoted_bfloat16": lambda: pipeline.stored_in(
        compressed(llama(), recipe()), torch.bfloat16
    ),
    "shared_basis": of_recipe(two_blocks, sharing=ADJACENT, layer="lowrank"),
    "sparse_dictionary": of_recipe(layer="sparse_dictionary"),
    "untied_head": of_recipe(tied, include=("lm_head", "mlp"), allocation="uniform"),
    "factored_table": of_recipe(embeddings={"budget": 0.5}, layer="lowrank"),
    "factored_table_tied": of_recipe(tied, embeddings={"budget": 0.5}, layer="lowrank"),
    "factors_rtn8": quantised("rtn", 8, 0.25),
    "factors_rtn4": quantised("rtn", 4, 0.15),
    "factors_nf4": quantised("nf4", 4, 0.15),
    "factors_nf4_adapters": with_adapters,
    "compensated_rtn": compensated("rtn", 2, bits=3, group=8),
    "compensated_wanda_2_4": compensated("wanda_2_4", 0),
    "split_experts": of_recipe(mixture),
}
CALIBRATIONS: dict[str, dict[str, Any]] = {
    "full": {"wide": "full"},
    "through_weight": {},
    "low_rank": {"statistics_bytes": 9000},
    "blocks": {"statistics_bytes": 9000, "statistics_form": "blocks"},
}
DECOMPOSITIONS: dict[str, dict[str, Any]] = {
    "plain": {"layer": "lowrank"},
    "offset_signed": {"method": "obd_bias", "allocation": "zero_sum", "layer": "lowrank"},
    "groups": {"sharing": ADJACENT, "layer": "lowrank"},
}
REFINEMENT = [
    {"name": "block", "options": {"epochs": 1, "basis": "covariances"}},
    {"name": "anchored", "options": {"mix": 0.5}},
    {"name": "next_token", "options": {"steps": 2}},
]
RECIPES: dict[str, dict[str, Any]] = {
    "task": {
        "task": {"data": "task.jsonl", "shots": 1},
        "selection": {"importance": "hutchinson", "slope": "signed", "rule": "mass"},
    },
    "compensation": {"compensation": {"base_options": {"bits": 3}, "path_bytes": 5000}},
    "quantisation": {
        "embeddings": {"budget": 0.5},
        "quantisation": {"bits": 4, "base": "rtn"},
    },
    "latency": {"latency": {"budget": 0.9}},
}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(IDS).logits.float()


def write_checkpoints(expected: dict[str, Tensor]) -> None:
    llama().save_pretrained(HERE / "dense")
    expected["dense"] = logits(llama())
    for name, make in CHECKPOINTS.items():
        model = make().eval()
        spectrim.save(model, None, str(HERE / "checkpoints" / name))
        expected[name] = logits(model)
    export_self_contained(HERE / "checkpoints" / "lowrank", HERE / "self_contained")


def write_calibrations(expected: dict[str, Tensor]) -> None:
    """Each with the spectra that the default method makes of it."""
    for name, changes in CALIBRATIONS.items():
        calibration = recipe().to_dict()["calibration"] | changes
        given = recipe(calibration=calibration)
        model = llama()
        found = pipeline.calibrate(model, tokenizer(), given)
        save_calibration(found, HERE / f"calibration_{name}.safetensors")
        spectra = pipeline.decompose(model, found, given)
        expected |= {f"{name}|{layer}": spectra.spectrum(layer) for layer in spectra.factors}


def write_decompositions(expected: dict[str, Tensor]) -> None:
    for name, changes in DECOMPOSITIONS.items():
        given = recipe(**changes)
        model = two_blocks() if "sharing" in changes else llama()
        found = pipeline.factorise(model, tokenizer(), given)
        chosen = pipeline.plan(found, given)
        found.save(HERE / f"decomposition_{name}.safetensors")
        save_plan(chosen, HERE / f"plan_{name}.yaml")
        expected[f"plan_{name}"] = logits(pipeline.compress(model, found, chosen))


def write_recipes() -> None:
    """With every field, as outputs record them; each optional part is in one of them."""
    for name, changes in RECIPES.items():
        (HERE / f"recipe_{name}.yaml").write_text(recipe(**changes).to_yaml())


def compress_by_command_line() -> None:
    """The recipe and the plan that `spectrim compress` leaves beside the weights."""
    llama().save_pretrained("model")
    tokenizer().save_pretrained("model")
    Path("asked.yaml").write_text(recipe(refinement=REFINEMENT).to_yaml())
    command = [sys.executable, "-m", "spectrim", "compress", "model", "-o", "out"]
    command += ["--recipe", "asked.yaml", "--data", "text.txt", "--no-cache"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name in ("recipe", "plan"):
        shutil.copy(f"out/spectrim_{name}.yaml", HERE / f"{name}_compress.yaml")


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_text()
        expected = {"ids": IDS}
        write_checkpoints(expected)
        write_calibrations(expected)
        write_decompositions(expected)
        write_recipes()
        compress_by_command_line()
        save_file(expected, HERE / "expected.safetensors")
        os.chdir(HERE)


if __name__ == "__main__":
    main()
