"""What every compressor promises, and what each known one does to a weight."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from spectrim.errors import InputError, ModelError, NumericalError
from spectrim.layers.quantized import QUANTIZERS, Adapter, CompressedLinear, quantizer_class
from spectrim.statistics import STATISTICS, LayerProblem
from tests.layer_problems import LAYER, random_layer, random_tokens, statistics_of
from tests.tolerances import FLOAT32_RELATIVE

CASES = [
    ("rtn", {"bits": 4}),
    ("rtn", {"bits": 3, "scheme": "symmetric"}),
    ("rtn", {"bits": 8, "group": 40}),
    ("rtn", {"bits": 2, "group": 5}),
    ("rtn", {"bits": 2, "scheme": "centered"}),
    ("gptq", {"bits": 3, "group": 20}),
    ("gptq", {"bits": 2, "scheme": "centered", "group": 48}),
    ("mixed", {"bits": 3}),
    ("mixed", {"bits": 2, "rank_share": 0.1, "density": 0.02, "group": 20}),
    ("mixed", {"bits": 0, "rank_share": 0.25, "factor_bits": 8}),
    ("mixed", {"bits": 0, "rank_share": 0.2, "density": 0.05, "factor_bits": 3}),
    ("gptq", {"bits": 2, "two_sided": False, "act_order": False}),
    ("sparse_2_4", {}),
    ("wanda_2_4", {}),
    ("rtn_columns", {"bits": 4, "group": 16}),
    ("nf4", {}),
    ("nf4", {"group": 100}),
    ("torchao", {"bits": 8}),
    ("torchao", {"bits": 4}),
]
SHAPE = (32, 64)
needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is not installed (extra spectrim[torchao])"
)
cases = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*c, marks=needs_torchao if c[0] == "torchao" else ()) for c in CASES],
    ids=str,
)


def problem(shape: tuple[int, int] = SHAPE, bias: bool = True, seed: int = 0) -> LayerProblem:
    weight, offset = random_layer(shape, seed)
    weight, offset = weight.float(), offset.float()
    tokens = random_tokens(weight.double(), offset.double(), 64)
    names = ("gradient_covariance", "input_covariance")
    statistics = statistics_of(tokens, shape, names)
    return LayerProblem(LAYER, weight, offset if bias else None, statistics)


def compressed(name: str, options: dict, given: LayerProblem) -> CompressedLinear:
    return QUANTIZERS.get(name).compress(given, QUANTIZERS.options(name, options))


def inputs(width: int = SHAPE[1], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def stored(layer: CompressedLinear) -> dict[str, Tensor]:
    return {n: tensor for n, tensor in layer.state_dict().items() if n != "bias"}


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_module_declares_itself(name):
    module = QUANTIZERS.get(name)
    assert module.REFERENCE
    assert QUANTIZERS.summary(name)
    assert set(module.REQUIRES) <= set(STATISTICS.names())
    assert issubclass(quantizer_class(name), CompressedLinear)


@cases
def test_bytes_are_those_of_the_formula(name, options):
    layer = compressed(name, options, problem())
    held = sum(t.numel() * t.element_size() for t in stored(layer).values())
    assert held == type(layer).cost(SHAPE, layer.options, 4)
    assert held < 4 * SHAPE[0] * SHAPE[1]


@cases
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_forward_is_its_dense_matrix(name, options, bias):
    given = problem(bias=bias)
    layer = compressed(name, options, given)
    weight, offset = layer.dense()
    assert weight.dtype == torch.float64
    expected = inputs().double() @ weight.T
    if bias:
        assert torch.equal(offset, given.bias.double())
        expected = expected + offset
    difference = (layer(inputs()).detach() - expected).norm()
    assert float(difference) <= FLOAT32_RELATIVE * float(expected.norm())


@cases
def test_state_fits_an_empty_layer_of_the_stated_options(name, options):
    layer = compressed(name, options, problem())
    parsed = type(layer).parsed(layer.stated)
    other = type(layer).empty(SHAPE, True, parsed)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(inputs()), layer(inputs()))
    with torch.device("meta"):
        empty = type(layer).empty(SHAPE, True, parsed)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(inputs()), layer(inputs()))


@cases
def test_a_cast_leaves_codes_and_scales(name, options):
    layer = compressed(name, options, problem())
    before = {n: t.clone() for n, t in stored(layer).items() if not t.is_floating_point()}
    assert before
    layer.to(torch.bfloat16)
    assert all(torch.equal(stored(layer)[n], t) for n, t in before.items())
    assert layer(inputs(dtype=torch.bfloat16)).dtype == torch.bfloat16


@cases
def test_weights_that_are_not_finite(name, options):
    given = problem()
    given.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=LAYER):
        compressed(name, options, given)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_at_most_a_step(bits, scheme):
    """Half a step inside the grid; at its ends the rounded zero and scale may cost as much."""
    given = problem()
    layer = compressed("rtn", {"bits": bits, "group": 16, "scheme": scheme}, given)
    error = (layer.dense()[0] - given.weight).abs().unflatten(1, (-1, 16)).amax(-1)
    assert bool((error <= layer.scales.view(torch.float16).double()).all())


def test_rtn_against_a_plain_loop():
    given = problem((3, 10), bias=False)
    layer = compressed("rtn", {"bits": 3, "group": 4}, given)
    expected = torch.zeros(3, 10, dtype=torch.float64)
    for row in range(3):
        for start in (0, 4, 8):
            group = given.weight[row, start : start + 4]
            low, high = min(float(group.min()), 0.0), max(float(group.max()), 0.0)
            scale = float(torch.tensor((high - low) / 7).half())
            zero = min(max(round(-low / scale), 0), 7)
            for place, value in enumerate(group.tolist()):
                code = min(max(round(value / scale) + zero, 0), 7)
                expected[row, start + place] = scale * (code - zero)
    assert torch.equal(layer.dense()[0], expected)


def test_groups_of_zeros_stay_zero():
    given = problem()
    given.weight[:, :32] = 0
    for scheme in ("symmetric", "asymmetric"):
        layer = compressed("rtn", {"scheme": scheme}, given)
        assert not layer.dense()[0][:, :32].any()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_centered_grid_has_as_many_points_on_either_side(bits):
    layer = compressed("rtn", {"bits": bits, "scheme": "centered", "group": 8}, problem())
    steps = layer.dense()[0].unflatten(1, (-1, 8)) / layer.scales.view(torch.float16)[..., None]
    points = torch.arange(2**bits) - (2**bits - 1) / 2
    assert torch.equal(steps.round(decimals=6).unique(), points.double())


def test_two_of_four_stay_as_they_are():
    given = problem()
    weight = compressed("sparse_2_4", {}, given).dense()[0]
    kept = weight != 0
    assert bool((kept.unflatten(1, (-1, 4)).sum(-1) == 2).all())
    assert torch.equal(weight[kept], given.weight.double()[kept])
    fours = given.weight.abs().unflatten(1, (-1, 4))
    dropped = fours.masked_fill(kept.unflatten(1, (-1, 4)), 0).amax(-1)
    least = fours.masked_fill(~kept.unflatten(1, (-1, 4)), float("inf")).amin(-1)
    assert bool((dropped <= least).all())


def test_wanda_keeps_what_the_inputs_weigh():
    given = problem()
    scale = given.statistic("input_covariance").diagonal().sqrt()
    scaled = LayerProblem(LAYER, given.weight * scale, None, None)
    by_magnitude = compressed("sparse_2_4", {}, scaled).dense()[0] != 0
    assert torch.equal(compressed("wanda_2_4", {}, given).dense()[0] != 0, by_magnitude)
    assert not torch.equal(compressed("sparse_2_4", {}, given).dense()[0] != 0, by_magnitude)


def test_widths_that_two_of_four_cannot_have():
    with pytest.raises(ModelError, match="multiple of 4"):
        compressed("sparse_2_4", {}, problem((8, 10)))


@needs_torchao
@pytest.mark.parametrize("shape", [(24, 64), (32, 50)])
def test_shapes_that_torchaos_kernel_refuses(shape):
    with pytest.raises(ModelError, match="--quantizer rtn"):
        compressed("torchao", {"bits": 4}, problem(shape))


@needs_torchao
def test_a_tile_order_of_another_machine():
    layer = compressed("torchao", {"bits": 4}, problem())
    foreign = type(layer).parsed(layer.stated | {"layout": "OTHER"})
    with pytest.raises(InputError, match="OTHER"):
        type(layer).empty(SHAPE, False, foreign)


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is installed")
def test_torchao_that_is_missing():
    with pytest.raises(InputError, match=r"spectrim\[torchao\]"):
        compressed("torchao", {"bits": 8}, problem())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rtn", {"bits": 9}),
        ("rtn", {"group": 0}),
        ("mixed", {"bits": 0}),
        ("mixed", {"density": 1.0}),
        ("rtn", {"scheme": "other"}),
        ("torchao", {"bits": 3}),
        ("torchao", {"group": 7}),
        ("sparse_2_4", {"bits": 4}),
    ],
)
def test_options_that_do_not_exist(name, options):
    with pytest.raises(InputError):
        QUANTIZERS.options(name, options)
    with pytest.raises(InputError):
        quantizer_class(name).parsed(options)


def test_faults_of_loaded_tensors():
    layer = compressed("rtn", {}, problem())
    assert layer.validate() is None
    layer.scales[0, 0] = torch.tensor(float("inf"), dtype=torch.float16).view(torch.int16)
    assert layer.validate().startswith("scales")
    sparse = compressed("sparse_2_4", {}, problem())
    assert sparse.validate() is None
    sparse.places.zero_()
    assert sparse.validate().startswith("places")


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_column_is_refused_in_words(dtype):
    one = LayerProblem(LAYER, torch.randn(31, 1, dtype=dtype), None, None)
    with pytest.raises(ModelError, match="cannot compress"):
        compressed("torchao", {"bits": 8}, one)


def test_nf4_is_that_of_bitsandbytes():
    functional = pytest.importorskip(
        "bitsandbytes.functional", reason="bitsandbytes is not installed"
    )
    given = problem((48, 50), bias=False)
    given.weight[3, :] = 0
    packed, state = functional.quantize_4bit(given.weight, blocksize=64, quant_type="nf4")
    expected = functional.dequantize_4bit(packed, state)
    assert torch.equal(compressed("nf4", {}, given).matrix(torch.float32), expected)


@cases
def test_an_adapter_is_part_of_the_matrix(name, options):
    layer = compressed(name, options, problem())
    alone = layer.dense()[0]
    layer.adapter = Adapter(SHAPE[1], SHAPE[0], 3)
    up, down = (layer.adapter.get_parameter(f"{n}.weight").detach() for n in ("up", "down"))
    assert torch.equal(layer.dense()[0], alone + up.double() @ down.double())
    expected = inputs().double() @ layer.dense()[0].T + layer.dense()[1]
    difference = (layer(inputs()).detach() - expected).norm()
    assert float(difference) <= FLOAT32_RELATIVE * float(expected.norm())
