"""WeLore, Maestro and sparse spectral training: what moves, what stays, and their state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectrim.errors import InputError, ModelError
from spectrim.layers import FactoredLinear
from spectrim.models.replace import factored_layers
from spectrim.models.targets import find_targets
from spectrim.refinement import REFINEMENTS, TrainingInputs
from spectrim.refinement.welore import chosen
from spectrim.runtime.context import RunContext
from spectrim.training.balanced_factors import balanced_parameters
from spectrim.training.losses import next_token_loss, task_rows
from spectrim.training.ordered_dropout import cut_to
from tests.checkpoint.compressing import replace_by_svd
from tests.contracts.test_refinements import case, same, state, tokens
from tests.tiny_models import tiny_llama
from tests.tolerances import FLOAT32_RELATIVE

FACTORED = r"(self_attn|layers\.1)"


def half_factored(kind: str = "lowrank", rank: int = 8):
    """A model whose attention and second block are factored, the rest dense."""
    model = tiny_llama()
    for target in find_targets(model, [FACTORED]):
        replace_by_svd(model, target.name, kind, rank)
    return model


def refine(model, name: str, **options):
    inputs = TrainingInputs(model, model, tokens())
    given = REFINEMENTS.options(name, {"steps": 12, "batch_size": 8} | options)
    return REFINEMENTS.get(name).refine(inputs, given, RunContext())


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", ["lowrank", "pivoted", "sparse_plus_lowrank"])
@pytest.mark.parametrize("part", ["low_rank", "dense", "all"])
def test_welore_moves_the_named_part_alone(part, kind):
    model = half_factored(kind)
    before = weights(model)
    losses = refine(model, "welore", part=part, learning_rate=3e-3)["next token"]
    assert losses[-1] < losses[0]
    factored = {name for name, _ in factored_layers(model)}
    for name, weight in weights(model).items():
        away = float((weight - before[name]).norm() / before[name].norm())
        if name in factored and part == "dense":  # put back into its kind by another product
            assert away < FLOAT32_RELATIVE, name
        elif name.endswith("proj"):
            assert (away > 0) == (part == "all" or (name in factored) == (part == "low_rank"))
        else:
            assert away == 0, name


def weights(model) -> dict[str, Tensor]:
    """What every layer multiplies with, however it is stored."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, FactoredLinear):
            found[name] = module.dense()[0]
        elif not name.startswith(tuple(outer + "." for outer in found)):
            for parameter in module.parameters(recurse=False):
                found[name] = parameter.detach().double()
    return found


def test_welore_counts_the_factors_alone():
    model = half_factored()
    with balanced_parameters(model) as inside:
        counts = {
            part: sum(p.numel() for p in chosen(model, inside, part).values())
            for part in ("low_rank", "dense", "all")
        }
    targets = find_targets(tiny_llama(), [FACTORED])
    assert counts["low_rank"] == sum(8 * sum(target.shape) for target in targets)
    assert counts["all"] == counts["low_rank"] + counts["dense"]
    assert counts["dense"] == 3 * 32 * 64


def test_welore_without_such_layers_says_so():
    given = case("llama")
    with pytest.raises(ModelError, match="no layer of the blocks is dense"):
        given.refine("welore", part="dense")


@pytest.mark.slow
def test_maestro_orders_terms_so_that_prefixes_lose_less():
    """Cut at half their rank, nested factors lose less than those trained at full rank."""
    ends = {}
    rows = task_rows(tokens())
    for name in ("finetune", "maestro"):
        model = half_factored(rank=16)
        refine(model, name, steps=160, learning_rate=5e-3)
        layers = [m for m in model.modules() if type(m).__name__ == "LowRankLinear"]
        with torch.no_grad(), cut_to(dict.fromkeys(layers, 4)):
            cut = next_token_loss(model, rows, "float32", torch.arange(8))
        ends[name] = float(cut)
    assert ends["maestro"] < ends["finetune"] - 0.05, ends


@pytest.mark.slow
def test_maestros_penalty_shrinks_the_tails():
    tails = {}
    for penalty in (0.0, 0.03):
        model = half_factored(rank=16)
        refine(model, "maestro", steps=40, learning_rate=3e-3, penalty=penalty)
        layer = model.model.layers[1].mlp.up_proj
        tails[penalty] = float(layer.left.weight[:, 8:].norm() * layer.right.weight[8:].norm())
    assert tails[0.03] < 0.9 * tails[0.0]
    with pytest.raises(InputError, match="penalty cannot be negative"):
        REFINEMENTS.options("maestro", {"penalty": -1.0})


def test_sst_trains_little_and_moves_every_layer():
    model = half_factored()
    before = state(model)
    losses = refine(model, "sst", steps=24, interval=6, vectors=2, learning_rate=5e-3)
    assert sum(losses["spectral"][-4:]) < sum(losses["spectral"][:4])
    assert not same(state(model), before)
    factored = {t.name for t in find_targets(tiny_llama(), [FACTORED])}
    for name, tensor in model.state_dict().items():
        if name.endswith(("left.weight", "right.weight")):
            assert not torch.equal(tensor, before[name])
        elif name.endswith("proj.weight"):
            assert not name.startswith(tuple(factored))
            assert torch.equal(tensor, before[name]), "what is dense stays"
    with pytest.raises(InputError, match="vectors and interval"):
        REFINEMENTS.options("sst", {"vectors": 0})
