"""Distillation of a model that holds several sizes: each of them gets better at once."""

from __future__ import annotations

import pytest
import torch

import spectrim
from spectrim.errors import InputError
from spectrim.layers import ElasticLinear
from spectrim.pipeline.budgets import ElasticRecipe, of_all_sizes
from spectrim.pipeline.compress import compress
from spectrim.pipeline.presets import load_recipe
from spectrim.pipeline.recipe import RefinementRecipe
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.training.loop import Stage, Trainer
from spectrim.training.sampled_sizes import SampledSizes
from spectrim.training.schedule import Schedule
from tests.checkpoint.compressing import logits
from tests.runs import MetricLog, small_recipe, text_file
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.tolerances import CUT_LOGITS_RELATIVE, SUMMED_GRADIENTS_RELATIVE

RANGE = ElasticRecipe(0.4, 0.9)
BUDGETS = (0.4, 0.5, 0.65, 0.8, 0.9)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("sizes") / "text.txt")


def lively_llama():
    """A tiny model whose predictions matter: its weights are six times as large."""
    model = tiny_llama()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "lm_head" in name:
                parameter *= 6
    return model


@pytest.fixture(scope="module")
def plain(text):
    recipe = small_recipe(text, elastic=RANGE, rank_multiple=1, layer="lowrank")
    return compress(lively_llama(), tiny_tokenizer(), recipe)


def step_of(**given) -> RefinementRecipe:
    fast = {"tokens": 12_000, "learning_rate": 1e-3}
    return RefinementRecipe("distillation", fast | given, sequences=60)


def trained(plain, step, context=None):
    recipe = plain.recipe.with_changes(refinement=(step,))
    return compress(lively_llama(), tiny_tokenizer(), recipe, context)


@torch.no_grad()
def distance(model, budget: float, ids) -> float:
    """KL(original || model) at a size, nats per token."""
    rows = ids[:256].view(8, 32)
    wanted = lively_llama()(rows).logits.log_softmax(-1)
    found = spectrim.resize(model, budget)(rows).logits.log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "kfac_adamw"])
def test_every_size_comes_closer_to_the_original(plain, text, optimizer, tmp_path):
    ids = torch.tensor(tiny_tokenizer()(text.read_text()[:600]).input_ids)
    log = MetricLog()
    step = step_of(optimizer=optimizer, lr_scaling="none")
    better = trained(plain, step, RunContext(Cache(tmp_path), log_metrics=log))
    shares = [distance(better.model, b, ids) / distance(plain.model, b, ids) for b in BUDGETS]
    assert max(shares) < 1
    assert sum(shares) / len(shares) < 0.85
    losses = log.series["loss/end to end"]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1  # logarithms of four losses
    again = trained(plain, step, RunContext(Cache(tmp_path)))  # from the cache
    for one, other in zip(better.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    config = better.model.config.quantization_config
    assert config.provenance["refinement"][0]["name"] == "distillation"
    out = spectrim.save(better.model, tiny_tokenizer(), tmp_path / "out")
    for budget in BUDGETS:
        loaded, _ = spectrim.load(out, budget=budget)
        expected = logits(spectrim.resize(better.model, budget))
        error = (logits(loaded) - expected).abs().max() / expected.abs().max()
        assert error <= CUT_LOGITS_RELATIVE


def test_a_step_has_both_ends_and_one_size_in_each_half():
    sizes = SampledSizes(0.4, 0.9, lambda budget: {})
    draws = [sizes.draw(step, 3) for step in range(200)]
    assert all((d[0], d[3]) == (0.9, 0.4) for d in draws)
    assert all(0.4 <= d[2] <= 0.65 <= d[1] <= 0.9 for d in draws)
    assert min(d[1] for d in draws) < 0.67
    assert max(d[1] for d in draws) > 0.88
    assert draws[7] == sizes.draw(7, 3)
    assert len({d[2] for d in draws}) == 200


def test_a_cut_ends_at_the_largest_size(plain):
    sizes = spectrim.checkpoint.sizes_of(plain.model.config.quantization_config.elastic)
    sampled = SampledSizes(0.4, 0.9, sizes.ranks)
    layers = {n: m for n, m in plain.model.named_modules() if isinstance(m, ElasticLinear)}
    with sampled.cut(plain.model, 0.5):
        inside = {name: layer.rank for name, layer in layers.items()}
    assert inside == {n: rank for n, rank in sizes.ranks(0.5).items() if n in layers}
    largest = sizes.ranks(0.9)
    assert all(layer.rank == largest[name] for name, layer in layers.items())


def test_gradients_of_several_losses_are_summed():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3))
    data = torch.randn(8, 3)

    def parts(rows):
        for power in (2, 3, 4):
            yield (data[rows] @ weight.T).pow(power).mean()

    stage = Stage("parts", {"w": weight}, parts, 8)
    loss, (found,) = Trainer(stage, Schedule(3, 4, 1e-3, 0, 0), {})._gradients(
        torch.arange(4), 0.5
    )
    whole = 0.5 * sum(parts(torch.arange(4)))
    (expected,) = torch.autograd.grad(whole, [weight])
    assert torch.allclose(found, expected, rtol=SUMMED_GRADIENTS_RELATIVE)
    assert float(loss) == pytest.approx(float(whole.detach()), rel=SUMMED_GRADIENTS_RELATIVE)


def test_refinements_of_one_size_are_refused(text):
    recipe = small_recipe(text, elastic=RANGE)
    for name in ("block_distillation", "finetune", "maestro"):
        with pytest.raises(InputError, match="distillation, which trains all sizes"):
            recipe.with_changes(refinement=(RefinementRecipe(name),))


def test_the_best_recipe_trains_all_sizes_by_twice_its_tokens():
    best = load_recipe("best").to_dict()["refinement"]
    steps = of_all_sizes(best)
    assert [step["name"] for step in steps] == ["distillation"]
    sizes = len(SampledSizes(0.4, 0.9, lambda budget: {}).draw(0, 0))
    read = sum(step["options"]["tokens"] for step in best)
    assert sizes * steps[0]["options"]["tokens"] <= 2 * read
    only_one_size = [{"name": "finetune"}]
    assert of_all_sizes(only_one_size) == only_one_size
