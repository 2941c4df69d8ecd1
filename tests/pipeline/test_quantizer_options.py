"""Quantizer options by layer: what is offered, and that the budget of bits is kept."""

from __future__ import annotations

import pytest
import torch

from spectrim.checkpoint import export_dense, load
from spectrim.checkpoint import save_compressed as save
from spectrim.errors import InputError
from spectrim.evaluation.size import tensor_bytes
from spectrim.layers.quantized import mixed
from spectrim.models.targets import find_targets
from spectrim.pipeline.quantize import quantize
from spectrim.pipeline.quantizer_options import option_sets
from spectrim.pipeline.recipe import CorrectionRecipe
from tests.checkpoint.compressing import logits
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.tolerances import DENSE_EXPORT_ABSOLUTE, LOSS_RELATIVE

SOME = {"bits": (0, 2, 3, 8), "rank_share": (0.0, 0.25), "density": (0.0,)}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


def recipe_for(text, quantizer, bits, choices, **options):
    given = CorrectionRecipe(quantizer, options, choices=choices, bits_per_weight=bits)
    return small_recipe(text, correction=given)


def held(path, model) -> float:
    """Bits per weight of the layers' tensors in a checkpoint."""
    names = tuple(f"{target.name}." for target in find_targets(model))
    weights = sum(target.weights for target in find_targets(model))
    sizes = {n: size for n, size in tensor_bytes(path).items() if not n.endswith("bias")}
    return 8 * sum(size for n, size in sizes.items() if n.startswith(names)) / weights


@pytest.mark.few(1)
@pytest.mark.parametrize("architecture", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize(
    ("quantizer", "choices"),
    [("rtn", {"bits": (2, 3, 4)}), ("gptq", {"bits": (2, 4), "group": (32,)}), ("mixed", SOME)],
)
def test_the_budget_is_kept_and_the_file_loads(
    quantizer, choices, architecture, text, tmp_path
):
    budget = 4.2
    smaller = quantize(
        architecture(), tiny_tokenizer(), recipe_for(text, quantizer, budget, choices)
    )
    config = smaller.config.quantization_config
    save(smaller, None, tmp_path / "a", config)
    assert 0.7 * budget < held(tmp_path / "a", architecture()) <= budget
    facts = config.provenance["compensation"]
    assert facts["bits_per_weight"] == pytest.approx(held(tmp_path / "a", architecture()))
    assert len({str(entry["options"]) for entry in config.layers.values()}) > 1
    again = load(tmp_path / "a")[0]
    assert torch.equal(logits(again), logits(smaller))
    dense = load(export_dense(tmp_path / "a", tmp_path / "dense"))[0]
    assert (logits(dense) - logits(smaller)).abs().max() <= DENSE_EXPORT_ABSOLUTE


@pytest.mark.slow
def test_more_bits_and_more_choices_lose_less(text):
    def predicted(bits, choices):
        recipe = recipe_for(text, "mixed", bits, choices, rounds=0)
        smaller = quantize(tiny_llama(), tiny_tokenizer(), recipe)
        return smaller.config.quantization_config.provenance["compensation"]["predicted_loss"]

    only_bits = SOME | {"bits": (2, 3, 8), "rank_share": (0.0,)}
    fewer, more = predicted(3.6, only_bits), predicted(4.5, only_bits)
    assert more < fewer
    assert predicted(3.6, SOME) <= fewer * (1 + LOSS_RELATIVE)


def test_choices_are_those_of_the_quantizer_with_the_values_given():
    given = CorrectionRecipe("mixed", {"bits": 3, "group": 32}, bits_per_weight=3)
    sets = option_sets(given)
    assert {each["bits"] for each in sets} == {3}
    assert {each["group"] for each in sets} == {32}
    assert len(sets) == sum(each["bits"] == 3 for each in mixed.CHOICES)
    free = CorrectionRecipe("torchao", choices={"bits": (4, 8)}, bits_per_weight=6)
    assert option_sets(free) == [{"bits": 4}, {"bits": 8}]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (CorrectionRecipe("mixed", {"bits": 7}, bits_per_weight=3), "not 7"),
        (CorrectionRecipe("nf4", bits_per_weight=3), "several choices"),
    ],
)
def test_choices_that_are_not_offered(given, what):
    with pytest.raises(InputError, match=what):
        option_sets(given)


def test_a_budget_that_nothing_meets(text):
    recipe = recipe_for(text, "rtn", 1.5, {"bits": (2, 3)})
    with pytest.raises(InputError, match="at the cheapest"):
        quantize(tiny_llama(), tiny_tokenizer(), recipe)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"choices": {"bits": (2, 3)}}, "budget"),
        ({"bits_per_weight": 3.0, "bytes": 10}, "not both"),
        ({"bits_per_weight": 0.0}, "greater than 0"),
    ],
)
def test_recipes_that_cannot_be(fields, what):
    with pytest.raises(ValueError, match=what):
        CorrectionRecipe("gptq", **fields)
    values = small_recipe("text").to_dict() | {"correction": {"quantizer": "gptq", **fields}}
    from spectrim.pipeline.recipe import recipe_from

    with pytest.raises(InputError):
        recipe_from(values, "a file")


def test_every_value_of_a_choice_is_checked():
    choices = {"bits": (2, 11)}
    given = CorrectionRecipe("rtn", choices=choices, bits_per_weight=3)
    with pytest.raises(InputError, match="11"):
        small_recipe("text", correction=given)
