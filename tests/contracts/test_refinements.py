"""What every refinement promises, on every kind of layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.calibration.in_memory import CalibrationSettings, calibrate
from spectrim.checkpoint import load, save_compressed
from spectrim.data import TokenBlocks
from spectrim.data.blocks import fingerprint
from spectrim.errors import InputError, ModelError, NumericalError
from spectrim.layers import LAYERS, layer_class
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.targets import find_targets
from spectrim.refinement import REFINEMENTS, Losses, TrainingInputs, required_statistics
from spectrim.runtime import snapshots
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.statistics import Calibration
from tests.checkpoint.compressing import compress
from tests.tiny_models import TINY_MODELS, tiny_tokenizer, tiny_tokens

NAMES = REFINEMENTS.names()
KINDS = LAYERS.names()
MODELS = ("llama", "gpt2", "moe")
TRAINED = [
    name
    for name in NAMES
    if "learning_rate" in {field.name for field in fields(REFINEMENTS.get(name).Options)}
]
"""The others are closed forms: without a rate, a seed and steps."""
refinements = pytest.mark.parametrize("name", NAMES)
trained = pytest.mark.parametrize("name", TRAINED)


def tag(name: str, word: str, default: Any) -> Any:
    """Return what the file of a refinement declares for its contract tests."""
    return getattr(REFINEMENTS.get(name), word, default)


def pairs(word: str, values: tuple[Any, ...]) -> pytest.MarkDecorator:
    """Every refinement on every kind, each with one of the values, so dealt out that every
    refinement and every kind meets all of them (as in a Latin square)."""
    return pytest.mark.parametrize(
        ("name", "kind", word),
        [
            (name, kind, values[(row + column) % len(values)])
            for row, name in enumerate(NAMES)
            for column, kind in enumerate(KINDS)
            if layer_class(kind).LOSSLESS or not tag(name, "NEEDS_LOSSLESS", False)
        ],
    )


models = pairs("model", MODELS)


@dataclass
class Case:
    original: PreTrainedModel
    compressed: PreTrainedModel
    config: Any

    blocks: TokenBlocks | None = None

    def refine(self, name: str, context: RunContext | None = None, **options: Any) -> Losses:
        """Refine by quick options, changed by `options`, with the statistics that it reads."""
        given = tag(name, "QUICK", {}) | options
        required = required_statistics(name, given)
        found = statistics(self.original, required) if required else None
        inputs = TrainingInputs(self.original, self.compressed, self.blocks or tokens(), found)
        chosen = REFINEMENTS.options(name, given)
        return REFINEMENTS.get(name).refine(inputs, chosen, context or RunContext())


def statistics(model: PreTrainedModel, names: tuple[str, ...]) -> Calibration:
    return calibrate(model, find_targets(model), tokens(), CalibrationSettings(names))


def case(model: str, kind: str = "pivoted") -> Case:
    """The two share what is not factored, as they do after `pipeline.replace_layers`."""
    original = TINY_MODELS[model]()
    experts = fused_expert_names(original)
    split_experts(original, experts)
    shared = {id(tensor): tensor for tensor in original.parameters()}
    compressed = copy.deepcopy(original, shared)
    config = compress(compressed, kind)
    config.split_experts = experts
    return Case(original, compressed, config)


def tokens(padded: bool = False) -> TokenBlocks:
    ids = tiny_tokens(rows=8, length=16)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1::2, 12:] = not padded
    return TokenBlocks(ids, mask if padded else None, fingerprint(ids, mask), "random", 1)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@refinements
def test_module_declares_itself(name):
    module = REFINEMENTS.get(name)
    assert REFINEMENTS.summary(name)
    assert "Memory" in module.__doc__
    assert module.REFERENCE
    declared = {field.name for field in fields(module.Options)}
    assert {"seed", "learning_rate"} <= declared or "damping" in declared
    with pytest.raises(InputError, match="no_such_option"):
        REFINEMENTS.options(name, {"no_such_option": 1})
    wrong = {"learning_rate": 0.0} if name in TRAINED else {"damping": -1.0}
    with pytest.raises(InputError, match=next(iter(wrong))):
        REFINEMENTS.options(name, wrong)


@pytest.mark.few(12)
@models
def test_loss_falls(name, kind, model):
    stages = case(model, kind).refine(name)
    assert stages
    for losses in stages.values():
        quarter = max(1, len(losses) // 4)
        assert sum(losses[-quarter:]) < sum(losses[:quarter])


@pytest.mark.few(5)
@models
def test_original_flags_and_modes_stay(name, kind, model):
    given = case(model, kind)
    given.original.train()
    given.compressed.train()
    frozen = next(given.compressed.get_input_embeddings().parameters())
    frozen.requires_grad_(False)
    weights = state(given.original)
    flags = {n: p.requires_grad for n, p in given.compressed.named_parameters()}
    modes = {n: m.training for n, m in given.compressed.named_modules()}
    before = state(given.compressed)
    given.refine(name)
    refined = given.compressed
    assert same(state(given.original), weights)
    assert all(module.training for module in given.original.modules())
    assert {n: p.requires_grad for n, p in refined.named_parameters()} == flags
    assert {n: m.training for n, m in refined.named_modules()} == modes
    assert all(parameter.grad is None for parameter in refined.parameters())
    after = state(refined)
    assert after.keys() == before.keys()
    assert [t.shape for t in after.values()] == [t.shape for t in before.values()]
    assert refined.get_input_embeddings().weight is given.original.get_input_embeddings().weight


@pytest.mark.few(4)
@models
def test_saved_is_what_was_refined(name, kind, model, tmp_path):
    given = case(model, kind)
    given.refine(name)
    refined = given.compressed
    save_compressed(refined, tiny_tokenizer(), tmp_path / "saved", given.config)
    loaded, _ = load(tmp_path / "saved")
    assert same(state(loaded), state(refined))


class Stop:
    """Interrupts a run after so many steps, over all stages."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self, items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        for item in items:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield item


@pytest.mark.few(2)
@pairs("steps", (1, 5, 11))
def test_a_stopped_run_ends_the_same(name, kind, steps, tmp_path, one_thread, monkeypatch):
    monkeypatch.setattr(snapshots, "SECONDS_BETWEEN_SAVES", 0.0)
    whole, stopped = case("moe", kind), case("moe", kind)
    expected = whole.refine(name, RunContext(Cache(tmp_path / "whole")))
    before = state(stopped.compressed)
    cache = Cache(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        stopped.refine(name, RunContext(cache, Stop(steps)))
    assert same(state(stopped.compressed), before)
    assert list((tmp_path / "stopped").glob("*.parts/state"))
    resumed = stopped.refine(name, RunContext(cache))
    assert same(state(stopped.compressed), state(whole.compressed))
    assert resumed == expected
    assert not list((tmp_path / "stopped").glob("*.parts"))


@pytest.mark.few(3)
@refinements
def test_a_finished_run_is_not_run_again(name, tmp_path):
    first, second = case("llama"), case("llama")
    first.refine(name, RunContext(Cache(tmp_path)))
    second.refine(name, RunContext(Cache(tmp_path), progress=Stop(0)))
    assert same(state(first.compressed), state(second.compressed))


@pytest.mark.few(2)
@refinements
def test_a_damaged_state_is_made_again(name, tmp_path):
    first, second = case("llama"), case("llama")
    first.refine(name, RunContext(Cache(tmp_path)))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="again"):
        second.refine(name, RunContext(Cache(tmp_path)))
    assert same(state(first.compressed), state(second.compressed))


@pytest.mark.few(2)
@refinements
def test_other_options_are_another_run(name, tmp_path):
    first, second = case("llama"), case("llama")
    first.refine(name, RunContext(Cache(tmp_path)))
    other = {"seed": 1} if name in TRAINED else {"damping": 0.1}
    second.refine(name, RunContext(Cache(tmp_path)), **other)
    assert not same(state(first.compressed), state(second.compressed))


@trained
def test_non_finite_loss_names_the_step(name):
    given = case("llama")
    before = state(given.compressed)
    with pytest.raises(NumericalError, match=r"at step [1-9]\d* of"):
        given.refine(name, learning_rate=1e30)
    assert same(state(given.compressed), before)


@refinements
def test_half_precision_is_refused(name):
    given = case("llama")
    given.compressed = copy.deepcopy(given.compressed).bfloat16()
    with pytest.raises(ModelError, match="float32"):
        given.refine(name)


@pytest.mark.few(2)
@refinements
def test_padding_does_not_matter(name):
    """Whatever the padded positions hold, the result is the same."""
    results = []
    for filling in (5, 7):
        given = case("llama")
        given.blocks = tokens(padded=True)
        given.blocks.ids[~given.blocks.mask] = filling
        given.refine(name)
        results.append(state(given.compressed))
    assert same(*results)


@pytest.mark.few(4)
@refinements
def test_bfloat16_products(name):
    stages = case("llama").refine(name, precision="bfloat16")
    assert all(losses[-1] < losses[0] for losses in stages.values())


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
