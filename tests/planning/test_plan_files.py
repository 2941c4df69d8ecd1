"""Plans and recipes as files: exact round trips, and only InputError for what is broken."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spectrim.allocation import ALLOCATORS
from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import InputError
from spectrim.layers import LAYERS
from spectrim.pipeline.presets import PRESETS, load_recipe
from spectrim.pipeline.recipe import Recipe, recipe_from
from spectrim.planning import LayerPlan, Plan, load_plan, save_plan

PLAN = Plan(
    method="obd",
    allocation="loss_optimal",
    layer="pivoted",
    budget=0.8,
    kept=0.7999,
    predicted_loss=0.0123,
    layers={
        "model.layers.0.q": LayerPlan((32, 48), 7, 0.01),
        "model.layers.0.dense": LayerPlan((32, 48)),
    },
    provenance={
        "data": {"fingerprint": "abc", "nested": [1, 2.5, None, True]},
        "labels": "data",
    },
)
fuzz = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ""])
def test_plans_round_trip(suffix, tmp_path):
    path = tmp_path / "deep" / f"plan{suffix}"
    save_plan(PLAN, path)
    assert load_plan(path) == PLAN
    save_plan(load_plan(path), tmp_path / f"again{suffix}")
    assert (tmp_path / f"again{suffix}").read_bytes() == path.read_bytes()


def test_a_plan_without_a_loss_round_trips(tmp_path):
    plan = Plan("svd", "uniform", "lowrank", 0.5, 0.5, None, {})
    save_plan(plan, tmp_path / "p.yaml")
    assert load_plan(tmp_path / "p.yaml") == plan
    assert PLAN.ranks == {"model.layers.0.q": 7}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "spectrim-plan-2"),
        (("layers", "model.layers.0.q", "rank"), 33),
        (("layers", "model.layers.0.q", "rank"), 0),
        (("layers", "model.layers.0.q", "rank"), -1),
        (("layers", "model.layers.0.q", "rank"), 3.5),
        (("layers", "model.layers.0.q", "rank"), "many"),
        (("layers", "model.layers.0.q", "shape"), [0, 4]),
        (("layers", "model.layers.0.q", "shape"), [4]),
        (("layers", "model.layers.0.q", "shape"), None),
        (("layers", "model.layers.0.q", "colour"), "red"),
        (("layers",), []),
        (("budget",), None),
        (("unknown",), 1),
        ((), []),
        ((), None),
    ],
)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_broken_plans_name_the_field(path, value, suffix, tmp_path):
    values = replaced(PLAN.to_dict(), path, value)
    file = tmp_path / f"plan{suffix}"
    file.write_text(json.dumps(values) if suffix == ".json" else yaml.safe_dump(values))
    with pytest.raises(InputError, match=path[-1].split(".")[-1] if path else "plan"):
        load_plan(file)


def replaced(values: object, path: tuple, value: object) -> object:
    if not path:
        return value
    assert isinstance(values, dict)
    return {**values, path[0]: replaced(values.get(path[0]), path[1:], value)}


def test_missing_plan_and_folders(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path, Path("x" * 5000), Path("a\0b")):
        with pytest.raises(InputError):
            load_plan(path)
        with pytest.raises(InputError):
            load_recipe(str(path))


BROKEN_TEXTS = [
    b"", b"- 1", b"3", b"budget: 2020-13-45", b"budget: 0b_", b"budget: !!bool foo",
    b"budget: !!timestamp x", b"budget: !!int ''", b"{1: 2}", b"? [1]\n: 2", b"a: &a [*a]\n",
    b"budget: .nan", b"budget: .inf", b"include: 'a'", b"\x00", b"\xff\xfe", b"\xed\xa0\x80",
    b"[" * 1100, b"{" * 1100, b"!!python/object:os.system {}", b"a: *b", b"\tx",
    b"budget: '0.8x'",
    b"calibration: {length: 1}", b"probe: {tokens: many}", b"method_options: {damping: abc}",
    b"method: nothing", b"layer: [1]", b"save_dtype: int8", b"rank_multiple: 0",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN_TEXTS, ids=lambda text: repr(text[:24]))
def test_broken_texts_are_input_errors(text, tmp_path):
    for name in ("file.yaml", "file.json"):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(InputError):
            load_plan(tmp_path / name)
    (tmp_path / "recipe.yaml").write_bytes(text)
    if yaml_of(text) == {}:
        return
    with pytest.raises(InputError):
        load_recipe(str(tmp_path / "recipe.yaml"))


def yaml_of(text: bytes) -> object:
    try:
        return yaml.safe_load(text)
    except Exception:
        return None


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["obd", "svd", "uniform", "lowrank", "sampled", "0.5", "1e3", "nan"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths_of(tree: object, prefix: tuple = ()) -> list[tuple]:
    own = [prefix] if prefix else []
    if isinstance(tree, dict):
        return own + [p for key, sub in tree.items() for p in paths_of(sub, (*prefix, key))]
    return own


PLAN_PATHS = [*paths_of(PLAN.to_dict()), ("layers", "new"), ("extra",)]
RECIPE_PATHS = [
    *paths_of(Recipe().to_dict()),
    ("method_options", "damping"),
    ("method_options", "floor"),
    ("allocation_options", "x"),
    ("extra",),
    ("calibration", "extra"),
]


@given(st.lists(st.tuples(st.sampled_from(PLAN_PATHS), values), min_size=1, max_size=3))
@fuzz
def test_fuzzed_plans(tmp_path, changes):
    tree = PLAN.to_dict()
    for path, value in changes:
        tree = safely_replaced(tree, path, value)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(tree))
    try:
        plan = load_plan(file)
    except InputError:
        return
    save_plan(plan, tmp_path / "again.json")
    load_plan(tmp_path / "again.json")
    for layer in plan.layers.values():
        assert layer.rank is None or 1 <= layer.rank <= min(layer.shape)


def safely_replaced(tree: object, path: tuple, value: object) -> object:
    if not path:
        return value
    inner = tree if isinstance(tree, dict) else {}
    return {**inner, path[0]: safely_replaced(inner.get(path[0]), path[1:], value)}


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(RECIPE_PATHS), values), min_size=1, max_size=3))
@fuzz
def test_fuzzed_recipes(changes):
    tree = Recipe().to_dict()
    for path, value in changes:
        tree = safely_replaced(tree, path, value)
    try:
        recipe = recipe_from(tree, "fuzz")
    except InputError:
        return
    assert 0 < recipe.budget <= 1
    DECOMPOSITIONS.options(recipe.method, recipe.method_options)
    assert recipe.statistics
    assert recipe_from(recipe.to_dict(), "again").to_dict() == recipe.to_dict()


@pytest.mark.slow
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
@fuzz
def test_fuzzed_bytes(tmp_path, content):
    for name in ("x.yaml", "x.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            load_plan(tmp_path / name)
        try:
            load_recipe(str(tmp_path / name))
        except InputError:
            pass
        else:
            assert yaml_of(content) == {}


@pytest.mark.slow
@given(values)
@fuzz
def test_fuzzed_options(value):
    for registry in (DECOMPOSITIONS, ALLOCATORS):
        for name in registry.names():
            for option in ("damping", "alpha", "floor", "other"):
                with suppress(InputError):
                    assert is_dataclass(registry.options(name, {option: value}))


def test_changes_of_a_recipe():
    recipe = Recipe().with_changes(budget=0.5, layer="lowrank")
    assert (recipe.budget, recipe.layer) == (0.5, "lowrank")
    for wrong in ({"budget": 2}, {"budget": "x"}, {"layer": "x"}, {"no_such": 1}):
        with pytest.raises(InputError):
            recipe.with_changes(**wrong)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_round_trip_through_yaml(name, tmp_path):
    assert load_recipe(name) == PRESETS[name]
    (tmp_path / "r.yaml").write_text(PRESETS[name].to_yaml())
    assert load_recipe(str(tmp_path / "r.yaml")) == PRESETS[name]


def test_every_choice_makes_a_recipe():
    for method in DECOMPOSITIONS.names():
        for allocation in ALLOCATORS.names():
            for layer in set(LAYERS.names()) - {"shared_basis"}:
                recipe = Recipe(method=method, allocation=allocation, layer=layer)
                assert {"input_covariance", "gradient_covariance"} <= set(recipe.statistics)


def test_a_shared_basis_needs_layers_that_share_it():
    with pytest.raises(InputError, match=r"set sharing\.rule"):
        Recipe(layer="shared_basis")
