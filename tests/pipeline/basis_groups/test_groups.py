"""Which layers get one basis together."""

from __future__ import annotations

import pytest

from spectrim.errors import InputError
from spectrim.models.targets import find_targets
from spectrim.pipeline.basis_groups import normalized_readers
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.plan import decompose, plan
from spectrim.pipeline.recipe import SharingRecipe
from tests.pipeline.basis_groups.cases import MODELS, recipe_for
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("name", MODELS)
def test_adjacent_layers_that_read_a_normalized_state_share(done, name):
    expected = {
        "gpt2": {"attn.c_attn", "mlp.c_fc"},
        "moe": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    }.get(
        name,
        {
            *(f"self_attn.{x}_proj" for x in "qkv"),
            "mlp.gate_proj",
            "mlp.up_proj",
        },
    )
    groups = done[name, "adjacent"].decomposition.groups
    prefix = "transformer.h" if name == "gpt2" else "model.layers"
    assert {tuple(members) for members in groups.values()} == {
        (f"{prefix}.0.{kind}", f"{prefix}.1.{kind}") for kind in expected
    }
    assert all("+".join(members) == group for group, members in groups.items())


def test_same_input_shares_inside_a_block(done):
    groups = done["gqa", "same_input"].decomposition.groups
    assert [[n.split(".")[-1] for n in members] for members in groups.values()] == 2 * [
        ["q_proj", "k_proj", "v_proj"],
        ["gate_proj", "up_proj"],
    ]


def test_every_layer_is_decomposed_once(done):
    for case in done.values():
        planned = case.plan.modules
        assert sorted(planned) == sorted(t.name for t in find_targets(case.model))
        assert case.decomposition.weights == sum(t.weights for t in find_targets(case.model))


def test_looking_for_readers_leaves_the_model_as_it_was():
    model = tiny_llama()
    names = [target.name for target in find_targets(model)]
    assert {name.split(".")[-1] for name in normalized_readers(model, names)} == {
        *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    }
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("sharing", "groups"),
    [
        (SharingRecipe(rule="clustered", accept="all", max_error=0.0), 0),
        (SharingRecipe(rule="clustered", accept="all", max_error=2.0), 7),
        (
            SharingRecipe(rule="clustered", accept="all", max_error=2.0, error_estimate="weyl"),
            7,
        ),
        (SharingRecipe(rule="affinity", accept="all", max_error=0.0), 0),
        (SharingRecipe(rule="affinity", accept="all", max_error=2.0), 7),
        (SharingRecipe(rule="coding_rate", accept="all", max_error=0.0), 0),
        (SharingRecipe(rule="coding_rate", accept="all", max_error=2.0), 7),
        (SharingRecipe(rule="adjacent", accept="all", patterns=(r"o_proj$", "down")), 2),
        (SharingRecipe(rule="same_input", accept="all", patterns=("mlp",)), 2),
    ],
    ids=[
        *("no error allowed", "all", "weyl"),
        *(
            f"{rule}, {much}"
            for rule in ("affinity", "coding rate")
            for much in ("none", "all")
        ),
        *("types", "types of one input"),
    ],
)
def test_what_the_options_choose(done, text, sharing, groups):
    case = done["llama", "adjacent"]
    recipe = recipe_for(text, "none", sharing=sharing)
    assert len(decompose(case.model, case.calibration, recipe).groups) == groups


@pytest.mark.parametrize("rule", ["affinity", "coding_rate"])
def test_experts_of_a_block_are_grouped_and_never_across_blocks(done, text, rule):
    case = done["moe", "adjacent"]
    sharing = SharingRecipe(rule=rule, accept="all", max_error=2.0, patterns=("experts",))
    recipe = recipe_for(text, "none", sharing=sharing)
    groups = decompose(case.model, case.calibration, recipe).groups
    assert groups
    for members in groups.values():
        assert len({name.split(".experts.")[0] for name in members}) == 1
        assert len({name.split(".experts.")[1].split(".")[0] for name in members}) == 1


def test_cheaper_shares_where_the_prediction_falls(done, text):
    case = done["llama", "adjacent"]
    losses = {}
    for rule, keep in (("none", "all"), ("same_input", "all"), ("same_input", "cheaper")):
        sharing = SharingRecipe(rule=rule, accept=keep, budget=0.5)
        recipe = recipe_for(text, rule, sharing=sharing, budget=0.5, layer="lowrank")
        found = decompose(case.model, case.calibration, recipe)
        losses[rule, keep] = plan(found, recipe).predicted_loss
    assert losses["same_input", "cheaper"] <= losses["none", "all"]
    assert losses["same_input", "cheaper"] <= losses["same_input", "all"]


@pytest.mark.parametrize("method", ["afm", "gfwsvd"])
def test_methods_without_a_common_input_metric_are_refused(method, text):
    def run() -> None:
        model, recipe = tiny_llama(), recipe_for(text, "adjacent", method=method)
        decompose(model, calibrate(model, tiny_tokenizer(), recipe), recipe)

    with pytest.raises(InputError, match="share a basis"):
        run()


@pytest.mark.parametrize(
    ("sharing", "match"),
    [
        (SharingRecipe(rule="adjacent", patterns=("no_such",)), "finds no two layers"),
        (SharingRecipe(rule="adjacent", patterns=("(",)), "sharing.patterns"),
    ],
)
def test_rules_that_find_nothing_are_refused(done, text, sharing, match):
    case = done["llama", "adjacent"]
    with pytest.raises(InputError, match=match):
        decompose(case.model, case.calibration, recipe_for(text, "none", sharing=sharing))
