"""Layers on one basis, from statistics to a checkpoint that holds the basis once."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

import spectrim
from spectrim.calibration import Calibration
from spectrim.curves.probe import Probe
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import CheckpointError, InputError
from spectrim.evaluation import size
from spectrim.hub import export_dense, export_self_contained, load
from spectrim.layers.shared_basis import SharedBasisLinear
from spectrim.pipeline import calibrate, calibration_blocks, compress, decompose, measure, plan
from spectrim.pipeline.sharing import normalised_readers
from spectrim.planning import Decomposition, Plan, load_plan, save_plan
from spectrim.recipe import PathRecipe, Recipe, SharingRecipe
from spectrim.surgery.adapters import weight_of
from spectrim.surgery.rewrite import factored_layers, shared_bases
from spectrim.surgery.targets import find_targets
from tests.hub.test_fresh_process import WITHOUT_SPECTRIM, run
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import (
    DENSE_EXPORT_ABSOLUTE,
    DIVERGENCE_ABSOLUTE,
    DIVERGENCE_RELATIVE,
    FLOAT64_RELATIVE,
)

MODELS = ("llama", "gqa", "tied", "qwen2_bias", "gpt2", "moe")
CASES = [(model, "adjacent") for model in MODELS] + [
    ("gqa", "same_input"),
    ("llama", "clustered"),
]
cases = pytest.mark.parametrize("case", CASES, ids="-".join)


@dataclass(frozen=True)
class Done:
    model: PreTrainedModel
    calibration: Calibration
    decomposition: Decomposition
    plan: Plan
    compressed: PreTrainedModel
    directory: Path
    logits: Tensor


def recipe_for(text: Path, rule: str, **changes) -> Recipe:
    sharing = SharingRecipe(rule=rule, keep="all", error=2.0)
    given = {"path": PathRecipe(weight=0.0), "sharing": sharing, "rank_multiple": 1} | changes
    return small_recipe(text, **given)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def done(tmp_path_factory, text) -> dict[tuple[str, str], Done]:
    """Compressed by OBD with single layers pivoted, and saved."""
    root = tmp_path_factory.mktemp("shared")
    found = {}
    for name, rule in CASES:
        budget = 0.25 if name == "moe" else 0.5  # its attention is dense above
        model, recipe = TINY_MODELS[name](), recipe_for(text, rule, budget=budget)
        calibration = calibrate(model, tiny_tokenizer(), recipe)
        decomposition = decompose(model, calibration, recipe)
        chosen = plan(decomposition, recipe)
        smaller = compress(model, decomposition, chosen)
        directory = root / f"{name}-{rule}"
        spectrim.save(smaller, tiny_tokenizer(), str(directory))
        found[name, rule] = Done(
            model, calibration, decomposition, chosen, smaller, directory, logits(smaller)
        )
    return found


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(tiny_tokens()).logits


def stored(directory: Path) -> dict[str, int]:
    """Numbers by tensor name, of what is on disk."""
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key).numel() for key in file.keys()}  # noqa: SIM118


# --- who shares ------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_adjacent_layers_that_read_a_normalised_state_share(done, name):
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
    assert {name.split(".")[-1] for name in normalised_readers(model, names)} == {
        *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    }
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("sharing", "groups"),
    [
        (SharingRecipe(rule="clustered", keep="all", error=0.0), 0),
        (SharingRecipe(rule="clustered", keep="all", error=2.0), 7),
        (SharingRecipe(rule="clustered", keep="all", error=2.0, estimate="weyl"), 7),
        (SharingRecipe(rule="adjacent", keep="all", types=(r"o_proj$", "down")), 2),
        (SharingRecipe(rule="same_input", keep="all", types=("mlp",)), 2),
    ],
    ids=["no error allowed", "all", "weyl", "types", "types of one input"],
)
def test_what_the_options_choose(done, text, sharing, groups):
    case = done["llama", "adjacent"]
    recipe = recipe_for(text, "none", sharing=sharing)
    assert len(decompose(case.model, case.calibration, recipe).groups) == groups


def test_cheaper_shares_where_the_prediction_falls(done, text):
    case = done["llama", "adjacent"]
    losses = {}
    for rule, keep in (("none", "all"), ("same_input", "all"), ("same_input", "cheaper")):
        sharing = SharingRecipe(rule=rule, keep=keep, budget=0.5)
        recipe = recipe_for(text, rule, sharing=sharing, budget=0.5, layer="lowrank")
        found = decompose(case.model, case.calibration, recipe)
        losses[rule, keep] = plan(found, recipe).predicted_loss
    assert losses["same_input", "cheaper"] <= losses["none", "all"]
    assert losses["same_input", "cheaper"] <= losses["same_input", "all"]


@pytest.mark.parametrize("method", ["afm", "gfwsvd"])
def test_methods_without_a_common_input_metric_are_refused(method, text):
    model = tiny_llama()
    recipe = recipe_for(text, "adjacent", method=method)
    calibration = calibrate(model, tiny_tokenizer(), recipe)
    with pytest.raises(InputError, match="cannot share a basis"):
        decompose(model, calibration, recipe)


@pytest.mark.parametrize(
    ("sharing", "match"),
    [
        (SharingRecipe(rule="adjacent", types=("no_such",)), "finds no two layers"),
        (SharingRecipe(rule="adjacent", types=("(",)), "sharing.types"),
    ],
)
def test_rules_that_find_nothing_are_refused(done, text, sharing, match):
    case = done["llama", "adjacent"]
    with pytest.raises(InputError, match=match):
        decompose(case.model, case.calibration, recipe_for(text, "none", sharing=sharing))


# --- the solution ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["svd_llm", "obd"])
def test_factors_are_those_of_the_stacked_whitened_weight(done, text, method):
    case = done["gqa", "adjacent"]
    recipe = recipe_for(text, "adjacent", method=method)
    found = decompose(case.model, case.calibration, recipe)
    damping = DECOMPOSITIONS.options(method).damping
    for name, members in found.groups.items():
        statistics = [case.calibration.layer(member) for member in members]
        inner = sum(s["input_covariance"] for s in statistics) / len(members)
        right = root(inner, damping)
        outer = [
            root(s["gradient_covariance"], damping)
            if method == "obd"
            else torch.eye(rows).double()
            for s, rows in zip(statistics, members.values(), strict=True)
        ]
        left = torch.block_diag(*outer)
        layers = [case.model.get_submodule(member) for member in members]
        weights = [weight_of(layer).detach().double() for layer in layers]
        u, s, v = torch.linalg.svd(left.T @ torch.cat(weights) @ right)
        for rank in (1, 5, 17):
            best = (u[:, :rank] * s[:rank]) @ v[:rank]
            dense = torch.linalg.solve(left.T, best) @ torch.linalg.inv(right)
            error = (found.factors[name].weight(rank) - dense).norm()
            assert error <= 100 * FLOAT64_RELATIVE * dense.norm()


def root(covariance: Tensor, damping: float) -> Tensor:
    mean = covariance.diagonal().mean()
    return torch.linalg.cholesky(covariance + damping * mean * torch.eye(len(covariance)))


def test_curves_price_each_member_by_its_own_statistics(done):
    case = done["llama", "adjacent"]
    name, members = next(iter(case.decomposition.groups.items()))
    factors, _ = case.decomposition.by_module({name: 4})
    expected = 0.0
    for member in members:
        statistics = case.calibration.layer(member)
        weight = weight_of(case.model.get_submodule(member)).detach().double()
        cut = weight - factors[member].weight(4)
        product = statistics["gradient_covariance"] @ cut @ statistics["input_covariance"]
        expected += 0.5 * float((product * cut).sum())
    assert float(case.decomposition.curves[name][4]) == pytest.approx(expected, rel=1e-6)


def test_the_probe_exchanges_groups(done, text):
    case = done["llama", "adjacent"]
    blocks = calibration_blocks(case.model, tiny_tokenizer(), recipe_for(text, "none"))
    probe = Probe(case.model, blocks, 192)
    found = probe.divergence(*case.decomposition.by_module(case.plan.ranks))
    with torch.no_grad():
        p = case.model(input_ids=probe.ids).logits[:, :-1].log_softmax(-1)
        q = case.compressed(input_ids=probe.ids).logits[:, :-1].log_softmax(-1)
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert found == pytest.approx(expected, rel=DIVERGENCE_RELATIVE, abs=DIVERGENCE_ABSOLUTE)


def test_curves_can_be_measured(done, text):
    case = done["gqa", "same_input"]
    recipe = recipe_for(text, "same_input")
    found = measure(case.model, tiny_tokenizer(), case.decomposition, recipe)
    assert found.correction.pairs
    assert found.groups == case.decomposition.groups
    assert all((curve.diff() <= 0).all() for curve in found.curves.values())


# --- the checkpoint --------------------------------------------------------------------


@cases
def test_the_cost_is_what_is_stored(done, case):
    found = done[case]
    assert any(found.plan.layers[name].members for name in found.plan.ranks)
    spent = 0
    for name, layer in found.plan.layers.items():
        inside = tuple(f"{member}." for member in found.plan.members(name))
        numbers = [
            count
            for key, count in stored(found.directory).items()
            if key.startswith(inside) and key.endswith("weight")
        ]
        if layer.members and layer.rank:
            assert sum(numbers) == layer.rank * sum(layer.shape)
        spent += sum(numbers)
    assert spent == round(found.plan.kept * found.decomposition.weights)


@cases
def test_the_basis_is_on_disk_once(done, case):
    found = done[case]
    keys = stored(found.directory)
    for owner, names in shared_bases(found.compressed).items():
        assert f"{owner}.right.weight" in keys
        assert all(f"{name}.right.weight" not in keys for name in names[1:])
        assert all(f"{name}.left.weight" in keys for name in names)
    state = found.compressed.state_dict()
    distinct = {tensor.data_ptr(): tensor.numel() for tensor in state.values()}
    assert sum(keys.values()) == sum(distinct.values())
    assert size.parameters(found.compressed) <= sum(distinct.values())
    assert size.stored_bytes(found.compressed) == sum(
        {t.data_ptr(): t.numel() * t.element_size() for t in state.values()}.values()
    )


@cases
def test_loaded_is_what_was_in_memory(done, case):
    found = done[case]
    model, _ = load(found.directory)
    assert torch.equal(logits(model), found.logits)
    assert shared_bases(model) == shared_bases(found.compressed)
    for owner, names in shared_bases(model).items():
        held = model.get_submodule(owner).right
        assert all(model.get_submodule(name).owner.right is held for name in names)


@cases
def test_saved_again_is_the_same_file(done, case, tmp_path):
    model, _ = load(done[case].directory)
    model.save_pretrained(tmp_path)
    first = (done[case].directory / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == first


def test_fresh_processes(done, tmp_path):
    directories = [case.directory for case in done.values()]
    found = run(tmp_path, "import spectrim\n", directories)
    for case in done.values():
        assert torch.equal(found[str(case.directory)], case.logits)


def test_without_spectrim(done, tmp_path):
    case = done["qwen2_bias", "adjacent"]
    own = export_self_contained(case.directory, tmp_path / "own")
    dense = export_dense(case.directory, tmp_path / "dense")
    found = run(tmp_path, WITHOUT_SPECTRIM, [own, dense], trust_remote_code=True)
    assert torch.equal(found[str(own)], case.logits)
    assert float((found[str(dense)] - case.logits).abs().max()) <= DENSE_EXPORT_ABSOLUTE


@pytest.mark.parametrize("name", ["gpt2", "tied", "gqa"])
def test_dense_export_is_the_same_function(done, name, tmp_path):
    case = done[name, "adjacent"]
    plain, _ = load(export_dense(case.directory, tmp_path / "dense"))
    assert not dict(factored_layers(plain))
    assert float((logits(plain) - case.logits).abs().max()) <= DENSE_EXPORT_ABSOLUTE


def test_a_bare_base_model_loads(done):
    case = done["llama", "adjacent"]
    base = AutoModel.from_pretrained(case.directory)
    inner = case.compressed.model
    with torch.no_grad():
        ids = tiny_tokens()
        assert torch.equal(base(ids).last_hidden_state, inner(ids).last_hidden_state)


def test_casting_and_copies_keep_the_basis_shared(done):
    case = done["llama", "adjacent"]
    half = compress(case.model, case.decomposition, case.plan, torch.bfloat16)
    assert shared_bases(half) == shared_bases(case.compressed)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(half)).all()


# --- plans and decompositions as files ---------------------------------------------------


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_plans_and_decompositions_round_trip(done, tmp_path, suffix):
    case = done["gqa", "adjacent"]
    save_plan(case.plan, tmp_path / f"plan.{suffix}")
    chosen = load_plan(tmp_path / f"plan.{suffix}")
    assert chosen == case.plan
    case.decomposition.save(tmp_path / "decomposition")
    again = Decomposition.load(tmp_path / "decomposition")
    assert again.groups == case.decomposition.groups
    assert torch.equal(logits(compress(case.model, again, chosen)), case.logits)


def tampered(values: dict, what: str) -> None:
    layers = values["layers"]
    name = next(n for n, layer in layers.items() if "members" in layer)
    members = layers[name]["members"]
    first, second = members
    if what == "fewer rows":
        members[first] -= 1
    elif what == "no rows":
        members[first], members[second] = 0, members[first] + members[second]
    elif what == "one member":
        layers[name]["members"] = {first: sum(members.values())}
    elif what == "twice":
        layers[first] = {"shape": [members[first], layers[name]["shape"][1]]}
    elif what == "not a mapping":
        layers[name]["members"] = [first, second]


@pytest.mark.parametrize(
    "what", ["fewer rows", "no rows", "one member", "twice", "not a mapping"]
)
def test_plans_that_contradict_themselves_are_refused(done, tmp_path, what):
    values = done["gqa", "adjacent"].plan.to_dict()
    tampered(values, what)
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(InputError):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("what", ["other order", "other member", "other split", "foreign"])
def test_plans_of_other_groups_are_refused(done, what):
    case = done["llama", "adjacent"]
    name = next(name for name in case.plan.ranks if case.plan.layers[name].members)
    layer = case.plan.layers[name]
    first, second = layer.members
    rows = layer.members[first]
    members = {
        "other order": {second: rows, first: rows},
        "other member": {first: rows, first.replace("q_proj", "o_proj"): rows},
        "other split": {first: rows - 1, second: rows + 1},
        "foreign": {first: rows, "model.layers.9.self_attn.q_proj": rows},
    }[what]
    layers = {n: p for n, p in case.plan.layers.items() if p.members or "o_proj" not in n}
    layers[name] = replace(layer, members=members)
    with pytest.raises(CheckpointError):
        compress(case.model, case.decomposition, replace(case.plan, layers=layers))


def test_damaged_groups_of_a_decomposition_are_refused(done, tmp_path):
    decomposition = done["llama", "adjacent"].decomposition
    name, members = next(iter(decomposition.groups.items()))
    wrong = {name: {member: rows + 1 for member, rows in members.items()}}
    replace(decomposition, groups=wrong).save(tmp_path / "d")
    with pytest.raises(CheckpointError, match="rows"):
        Decomposition.load(tmp_path / "d")


def test_single_layers_of_the_kind_are_plain_factors(done):
    layer = SharedBasisLinear.from_factors(torch.eye(4, 2), torch.eye(2, 3), None)
    assert layer.owner is layer
    assert "another" not in repr(layer)
