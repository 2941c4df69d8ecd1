"""Crafted and misfitting configs of layers on one basis."""

from __future__ import annotations

import pytest
import torch

from spectrim.checkpoint import SpectrimConfig, attach_config
from spectrim.checkpoint.empty_layers import install_empty_layers
from spectrim.errors import CheckpointError
from spectrim.models.replace import share_basis, shared_bases
from tests.tiny_models import tiny_gqa, tiny_llama

FIRST, SECOND = (f"model.layers.{i}.self_attn.k_proj" for i in (0, 1))
OWNER = {"kind": "shared_basis", "rank": 3}
MEMBER = OWNER | {"basis": FIRST}


@pytest.mark.parametrize(
    "layers",
    [
        {SECOND: MEMBER},
        {FIRST: OWNER | {"rank": 4}, SECOND: MEMBER},
        {FIRST: {"kind": "lowrank", "rank": 3}, SECOND: MEMBER},
        {FIRST: OWNER, SECOND: {"kind": "lowrank", "rank": 3, "basis": FIRST}},
        {FIRST: MEMBER},
        {FIRST: OWNER | {"basis": SECOND}, SECOND: MEMBER},
        {FIRST: OWNER, SECOND: OWNER | {"basis": 1}},
        {FIRST: OWNER, SECOND: OWNER | {"basis": [FIRST]}},
        {FIRST: OWNER, SECOND: MEMBER | {"code": "x"}},
    ],
    ids=["absent", "rank", "kind", "own kind", "itself", "circle", "number", "list", "more"],
)
def test_crafted_bases_are_refused(layers):
    with pytest.raises(CheckpointError):
        SpectrimConfig.from_dict({"layers": layers})


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ({FIRST: OWNER | {"rank": 49}, SECOND: MEMBER | {"rank": 49}}, "rank 49"),
        ({FIRST: OWNER | {"rank": 25}}, "rank 25"),
        (
            {FIRST: OWNER, "model.layers.0.mlp.down_proj": MEMBER},
            "wide",
        ),
    ],
    ids=["rank of both", "rank of one", "widths"],
)
def test_misfits_leave_the_model_alone(layers, match):
    model = tiny_gqa()
    before = [type(module) for module in model.modules()]
    with pytest.raises(CheckpointError, match=match):
        install_empty_layers(model, SpectrimConfig(layers))
    assert [type(module) for module in model.modules()] == before


def test_a_rank_above_a_members_rows_fits():
    """Two layers of 24 rows and 48 columns together have a rank of up to 48."""
    model = tiny_gqa()
    install_empty_layers(
        model, SpectrimConfig({FIRST: OWNER | {"rank": 40}, SECOND: MEMBER | {"rank": 40}})
    )
    assert shared_bases(model) == {FIRST: [FIRST, SECOND]}
    assert model.get_submodule(SECOND).left.weight.shape == (24, 40)


@pytest.mark.parametrize("described", [OWNER, None], ids=["apart", "too many"])
def test_a_config_that_shares_otherwise_than_the_model_is_refused(described):
    model = tiny_llama()
    lefts = {name: torch.ones(32, 3).double() for name in (FIRST, SECOND)}
    share_basis(model, lefts, torch.ones(3, 32), dict.fromkeys(lefts))
    third = FIRST.replace("k_proj", "v_proj")
    layers = {FIRST: OWNER, SECOND: described or MEMBER}
    if described is None:
        share_basis(model, {third: lefts[FIRST]}, torch.ones(3, 32), {third: None})
        layers[third] = MEMBER
    with pytest.raises(CheckpointError, match="shares a basis"):
        attach_config(model, SpectrimConfig(layers))
