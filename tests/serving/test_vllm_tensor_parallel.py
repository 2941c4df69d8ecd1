"""The plug-in's own arithmetic, without vLLM: what each process of a group multiplies with."""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import spectrim
import spectrim_vllm
from spectrim.allocation import NestedSizes
from spectrim.checkpoint import elastic_entry
from spectrim.checkpoint.config import FORMAT_VERSION, QUANT_METHOD
from spectrim.layers import LAYERS, layer_class
from spectrim.layers.pivoted import pack_bits
from spectrim.layers.sparse_plus_lowrank import nonzeros_of
from spectrim_vllm import config_entries
from spectrim_vllm.config_entries import Entry, projections, read_entries
from spectrim_vllm.elastic import Stored
from spectrim_vllm.projection import Projection
from spectrim_vllm.sharding import joined_rows, local_columns, local_rows, whole_sizes
from spectrim_vllm.tensor_parallel import (
    LocalSlice,
    expected_shapes,
    multiply,
    sparse_product,
    unpack_bits,
)
from tests.allocation.test_nested import nested
from tests.tolerances import ELASTIC_DENSE_ABSOLUTE, FLOAT64_RELATIVE

pytestmark = pytest.mark.slow

OUT, WIDTH, RANK = 24, 16, 6
NAME = "model.layers.0.self_attn.q_proj"
KINDS = (None, "lowrank", "pivoted", "sparse_dictionary", "sparse_plus_lowrank")
WAYS = ("whole", "columns", "rows")
FILES = sorted(Path(spectrim_vllm.__file__).parent.glob("*.py"))


def layer_of(kind: str | None, bias: bool = True) -> nn.Module:
    """A float64 layer of the kind, dense for None, with a bias where it may have one."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    given = random(OUT) if bias else None
    if kind is None:
        layer = nn.Linear(WIDTH, OUT, bias=False, dtype=torch.float64)
        layer.weight.data = random(OUT, WIDTH)
        return layer
    layer = layer_class(kind).from_factors(random(OUT, RANK), random(RANK, WIDTH), given)
    if kind == "sparse_plus_lowrank":
        layer.values.data = random(*layer.values.shape)
    return layer


def shares(way: str, count: int) -> list[LocalSlice]:
    """A group of `count` processes that cut outputs, inputs, or nothing."""
    shape, everything = (OUT, WIDTH), torch.arange(OUT)
    if way == "columns":
        return [LocalSlice(shape, rows, slice(0, WIDTH)) for rows in everything.chunk(count)]
    if way == "rows":
        step = WIDTH // count
        return [
            LocalSlice(shape, everything, slice(i * step, (i + 1) * step)) for i in range(count)
        ]
    return [LocalSlice(shape, everything, slice(0, WIDTH))]


def loaded(layer: nn.Module, kind: str | None, share: LocalSlice) -> Projection:
    """A projection with the layer's tensors, the last first."""
    entry = None if kind is None else Entry(kind, RANK)
    projection = Projection(NAME, entry, share)
    for name, tensor in reversed(list(layer.state_dict().items())):
        if name in projection.shapes:
            projection.take(name, tensor)
    return projection


@torch.no_grad()
def output_of(projection: Projection, x: torch.Tensor, has_bias: bool) -> torch.Tensor:
    piece = projection.local_factors(None, has_bias)
    z = nn.functional.linear(x[..., projection.local.columns], piece.first)
    y = multiply(z, piece.second, piece.position)
    if piece.values is not None:
        y = y + sparse_product(x[..., projection.local.columns], piece.values, piece.columns)
    return y if piece.bias is None else y + piece.bias


@pytest.mark.parametrize(("kind", "way", "count"), product(KINDS, WAYS, (1, 2, 4)))
def test_the_processes_together_give_the_layers_output(kind, way, count):
    """Outputs stand side by side where they are cut, and add up where inputs are."""
    layer = layer_of(kind, bias=way != "rows")
    x = torch.randn(5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    has_bias = kind in ("lowrank", "pivoted", "sparse_plus_lowrank") and way != "rows"
    parts = [output_of(loaded(layer, kind, share), x, has_bias) for share in shares(way, count)]
    y = torch.stack(parts).sum(0) if way == "rows" else torch.cat(parts, dim=-1)
    wanted = layer(x).detach()
    if kind == "sparse_dictionary" and way != "rows":
        wanted = wanted - layer.bias.detach()  # vLLM loads and adds a bias of its own name
    torch.testing.assert_close(y, wanted, rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE)


@pytest.mark.parametrize("kind", ["lowrank", "pivoted"])
def test_a_process_keeps_less_than_the_whole(kind):
    layer = layer_of(kind, bias=False)
    whole = sum(p.numel() for p in layer.parameters())
    for way in ("columns", "rows"):
        piece = loaded(layer, kind, shares(way, 4)[1]).local_factors(None, False)
        assert piece.first.numel() + piece.second.numel() < whole


@pytest.mark.parametrize("rank", [1, OUT])
def test_pivots_of_extreme_rank(rank):
    """All rows pivots, or a single one that most processes do not hold as an output."""
    torch.manual_seed(0)
    left = torch.randn(OUT, rank, dtype=torch.float64)
    right = torch.randn(rank, 32, dtype=torch.float64)
    layer = layer_class("pivoted").from_factors(left, right, torch.randn(OUT).double())
    x = torch.randn(3, 32, dtype=torch.float64)
    parts = []
    for rows in torch.arange(OUT).chunk(3):
        share = LocalSlice((OUT, 32), rows, slice(0, 32))
        projection = Projection(NAME, Entry("pivoted", rank), share)
        for name, tensor in layer.state_dict().items():
            projection.take(name, tensor)
        parts.append(output_of(projection, x, True))
    torch.testing.assert_close(torch.cat(parts, -1), layer(x).detach())


def test_a_basis_of_another_layer():
    layer = layer_of("lowrank", bias=False)
    share = shares("columns", 2)[1]
    projection = Projection(NAME, Entry("shared_basis", RANK, "model.x"), share)
    assert "right.weight" not in projection.shapes
    projection.take("left.weight", layer.left.weight.detach())
    piece = projection.local_factors(layer.right.weight.detach(), has_bias=False)
    assert torch.equal(piece.first, layer.right.weight)
    assert torch.equal(piece.second, layer.left.weight[share.rows])


def test_tensors_that_do_not_belong_are_refused():
    projection = Projection(NAME, Entry("lowrank", RANK), shares("whole", 1)[0])
    with pytest.raises(ValueError, match=r"has no pivot_mask; it has right\.weight"):
        projection.take("pivot_mask", torch.zeros(3))
    with pytest.raises(ValueError, match=r"left\.weight is \(6, 24\), expected \(24, 6\)"):
        projection.take("left.weight", torch.zeros(RANK, OUT))
    projection.take("left.weight", torch.zeros(OUT, RANK))
    with pytest.raises(ValueError, match=rf"has no {NAME}\.right\.weight, {NAME}\.left\.bias"):
        projection.local_factors(None, has_bias=True)


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_what_vllm_turned_is_turned_back(rank):
    """As it does to the weights of GPT-2; also where the factor is square."""
    stored = torch.randn(rank, WIDTH)
    projection = Projection(NAME, Entry("lowrank", rank), shares("whole", 1)[0])
    for tensor in (stored, stored.t()):
        projection.take("right.weight", tensor)
        assert torch.equal(projection.tensors["right.weight"], stored)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_expected_tensors_are_those_that_a_layer_stores(kind):
    stored = {name: tuple(t.shape) for name, t in layer_of(kind).state_dict().items()}
    stored.pop("bias", None)
    assert expected_shapes(Entry(kind, RANK), (OUT, WIDTH)) == stored


def qkv(rank: int, size: int, heads: tuple[int, int] = (4, 2)) -> SimpleNamespace:
    """What vLLM's fused attention layer says of itself: 4 query heads and 2 of keys, each 3
    wide, the latter repeated where there are more processes than heads."""
    queries, keys = heads
    held = max(1, keys // size)
    repeats = max(1, size // keys)
    sizes = [queries * 3, held * 3 * size, held * 3 * size]
    return SimpleNamespace(output_sizes=sizes, num_kv_head_replicas=repeats, tp_rank=rank)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_heads_are_dealt_as_vllm_deals_them(size):
    for rank in range(size):
        layer = qkv(rank, size)
        local = [total // size for total in layer.output_sizes]
        whole = whole_sizes(layer, local, sum(layer.output_sizes))
        assert whole == [12, 6, 6]
        q, k, v = local_rows(layer, local, whole)
        assert q.tolist() == list(range(rank * 12 // size, (rank + 1) * 12 // size))
        first = rank * 2 // size * 3
        held = list(range(first, first + max(3, 6 // size)))
        assert k.tolist() == v.tolist() == held


def test_one_projection_may_fill_all_parts():
    """A checkpoint that is fused itself: each process holds some rows of every part."""
    layer = qkv(1, 2)
    rows = local_rows(layer, [6, 3, 3], [12, 6, 6])
    assert joined_rows(rows, [12, 6, 6]).tolist() == [*range(6, 12), 15, 16, 17, 21, 22, 23]


def test_what_is_not_cut_is_held_whole():
    layer = SimpleNamespace(tp_rank=1)
    assert local_rows(layer, [10], whole_sizes(layer, [10], 10))[0].tolist() == list(range(10))
    assert local_columns(layer, 8, 8) == slice(0, 8)
    assert local_columns(layer, 4, 8) == slice(4, 8)
    with pytest.raises(ValueError, match="pads"):
        local_rows(layer, [6], [10])


def test_fused_layers_are_their_projections():
    packed = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_up_proj"]}
    names = projections("model.layers.0.self_attn.qkv_proj", packed, 3)
    assert names == [f"model.layers.0.self_attn.{x}_proj" for x in "qkv"]
    assert projections("a.gate_up_proj", packed, 2) == ["a.gate_up_proj"]
    assert projections("a.o_proj", packed, 1) == ["a.o_proj"]
    with pytest.raises(ValueError, match="fuses 3 projections into 4 parts"):
        projections("a.qkv_proj", packed, 4)


REFUSED = {
    "newer": ({"version": FORMAT_VERSION + 1}, "upgrade spectrim"),
    "table": ({"embeddings": {"name": "model.embed_tokens"}}, "a factored embedding table"),
    "experts": ({"split_experts": ["model.layers.0.mlp.experts"]}, "experts"),
    "quantised": ({"layers": {NAME: {"kind": "compensated", "rank": 4}}}, "'compensated'"),
    "unknown": ({"layers": {NAME: {"kind": "magic", "rank": 4}}}, "'magic'"),
    "no rank": ({"layers": {NAME: {"kind": "lowrank"}}}, "rank None"),
    "no mapping": ({"layers": {NAME: 3}}, "None"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_vllm_cannot_hold_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        read_entries(settings)


def test_entries():
    layers = {NAME: {"kind": "pivoted", "rank": 4}}
    layers["b"] = {"kind": "shared_basis", "rank": 2, "basis": "a"}
    found = read_entries({"version": 1, "layers": layers, "provenance": {}, "embeddings": None})
    assert found == {NAME: Entry("pivoted", 4), "b": Entry("shared_basis", 2, "a")}


def elastic_settings(budget: float | None) -> tuple[dict, NestedSizes]:
    """A config with several sizes of layers "a" to "d", and those sizes."""
    sizes = nested("pivoted")
    return {"version": 1, "elastic": elastic_entry(sizes, 0) | {"budget": budget}}, sizes


@pytest.mark.parametrize("budget", [None, 0.4, 0.47, 0.555, 0.7, 0.83, 0.9])
def test_a_size_has_the_ranks_that_spectrim_gives_it(budget):
    settings, sizes = elastic_settings(budget)
    found = {name: entry.rank or None for name, entry in read_entries(settings).items()}
    expected = sizes.ranks(budget or 0.9)
    assert found == {n: r for n, r in expected.items() if sizes.layers[n].components}


def test_a_size_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"sizes from 0\.4 to 0\.9"):
        read_entries(elastic_settings(0.95)[0])


@pytest.mark.parametrize(
    ("rank", "has_dense"), [(RANK, False), (RANK, True), (0, False), (0, True)]
)
@pytest.mark.parametrize(("way", "count"), [("whole", 1), ("columns", 3), ("rows", 2)])
def test_components_are_cut_to_the_size(rank, has_dense, way, count):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(WIDTH, OUT + WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(OUT, WIDTH, generator=generator, dtype=torch.float64)
    x = torch.randn(5, WIDTH, generator=generator, dtype=torch.float64)
    effective = rows[: rank or WIDTH, :OUT].T @ rows[: rank or WIDTH, OUT:]
    expected = x @ (weight if has_dense and not rank else effective).T
    entry = Entry("lowrank", rank, stored=Stored(WIDTH, has_dense))
    outputs = []
    for share in shares(way, count):
        projection = Projection(NAME, entry, share)
        projection.take("components", rows)
        if has_dense:
            projection.take("weight", weight)
        outputs.append(output_of(projection, x, True))
    found = torch.cat(outputs, -1) if way == "columns" else sum(outputs)
    assert (found - expected).abs().max() <= ELASTIC_DENSE_ABSOLUTE


def test_what_is_written_twice_agrees():
    """The plug-in imports nothing of spectrim, so a few facts stand in both."""
    assert spectrim_vllm.QUANT_METHOD == QUANT_METHOD
    assert config_entries.FORMAT_VERSION == FORMAT_VERSION
    assert set(config_entries.KINDS) == set(LAYERS.names())
    for width in (8, 50, 1000):
        entry = Entry("sparse_plus_lowrank", 2)
        assert expected_shapes(entry, (4, width))["values"] == (4, nonzeros_of(width))
    bits = torch.rand(29, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(unpack_bits(pack_bits(bits), 29), bits)


def test_nothing_else_needs_the_plug_in():
    package = Path(spectrim.__file__).parent
    assert not [path for path in package.rglob("*.py") if "spectrim_vllm" in path.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_plug_in_needs_torch_and_vllm_alone(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
    standard = {"__future__", "collections", "dataclasses", "itertools", "typing"}
    assert names - standard <= {"torch", "vllm", "spectrim_vllm"}
