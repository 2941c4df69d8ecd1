"""What a model does with its layers besides calling them is seen, and they stay dense."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrim.errors import CheckpointError, ModelError, NumericalWarning
from spectrim.models.prepare import STACKED, prepare_model
from spectrim.models.usage import (
    OTHER_INPUT,
    OTHER_OUTPUT,
    READ,
    Usage,
    load_usage,
    observe_usage,
    unusable_layers,
)
from spectrim.pipeline.inputs import prepare
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.recipe import Recipe
from spectrim.runtime.cache import Cache
from tests.runs import Forwards, small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer

DOWN = "model.layers.1.mlp.down_proj"


def with_mlp(forward):
    """A tiny model whose second MLP ends with `forward(mlp, hidden)`."""
    model = tiny_llama()
    mlp = model.model.layers[1].mlp

    def whole(x: Tensor) -> Tensor:
        return forward(mlp, mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))

    mlp.forward = whole
    return model


def reads(mlp, hidden):
    return F.linear(hidden, mlp.down_proj.weight)


def reads_for_dtype(mlp, hidden):
    return mlp.down_proj(hidden.to(mlp.down_proj.weight.dtype))


def writes(mlp, hidden):
    with torch.no_grad():
        mlp.down_proj.weight.div_(1.0)
    return mlp.down_proj(hidden)


def reads_when_generating(mlp, hidden):
    return reads(mlp, hidden) if hidden.shape[1] == 1 else mlp.down_proj(hidden)


def names_the_input(mlp, hidden):
    return mlp.down_proj(input=hidden)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [(reads, READ), (writes, READ), (names_the_input, OTHER_INPUT)],
)
def test_a_layer_that_is_not_just_called_stays_dense_by_name(forward, reason):
    model = with_mlp(forward)
    usage = observe_usage(model)
    assert usage.unusable == {DOWN: reason}
    with pytest.warns(NumericalWarning, match=rf"{DOWN}.*{reason}"):
        ready = prepare_model(model, usage)
    assert ready.dense == {DOWN: reason}
    assert DOWN not in [target.name for target in ready.targets]
    assert len(ready.targets) == 13


@pytest.mark.parametrize("forward", [reads_for_dtype, reads_when_generating])
def test_a_called_layer_may_be_read_too(forward):
    assert observe_usage(with_mlp(forward)).unusable == {}


def test_a_model_that_rewrites_its_weights_is_refused():
    def rewrites(mlp, hidden):
        with torch.no_grad():
            mlp.down_proj.weight.mul_(0.5 if not model.training else 2.0)
        return mlp.down_proj(hidden)

    model = with_mlp(rewrites)
    with pytest.raises(ModelError, match=rf"rewrites weights as it runs \({DOWN}\)"):
        observe_usage(model)


class Router(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, y.argmax(-1)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("kind", "usable"), [(Router, False), (Scaled, False), (Renamed, True)]
)
def test_subclasses_of_linear_are_judged_by_what_they_compute(kind, usable):
    layer = kind(4, 3)
    model = nn.Sequential(layer)
    unusable = unusable_layers(model, lambda: model(torch.randn(2, 5, 4)))
    assert unusable == ({} if usable else {"0": OTHER_OUTPUT})


def traits(model: nn.Module):
    """What a look at the model has to leave alone."""
    return {
        name: (type(module), module.training, dict(module._forward_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_ordinary_models_are_left_as_they_were(name):
    model = TINY_MODELS[name]().train()
    before = {
        n: (type(m), m.training, dict(m._forward_hooks)) for n, m in model.named_modules()
    }
    state = {n: t.clone() for n, t in model.state_dict().items()}
    usage = observe_usage(model)
    assert usage.unusable == {}
    assert len(usage.split) == (2 if name in ("moe", "mixtral") else 0)
    assert traits(model) == before
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_a_known_model_is_not_run_again(tmp_path):
    cache = Cache(tmp_path)
    with pytest.warns(NumericalWarning, match=DOWN):
        first = prepare(with_mlp(reads), Recipe(), cache)
    model = with_mlp(reads)
    with Forwards(model) as forwards, pytest.warns(NumericalWarning, match=DOWN):
        assert prepare(model, Recipe(), cache) == first
    assert forwards.count == 0


def test_a_usage_that_is_damaged_is_an_error(tmp_path):
    (tmp_path / "usage.json").write_text('{"unusable": {}}')
    with pytest.raises(CheckpointError, match=r"usage\.json"):
        load_usage(tmp_path / "usage.json")


def test_nothing_left_is_one_line():
    model = tiny_llama()
    usage = Usage({name: READ for name, _ in model.named_modules()})
    with pytest.raises(ModelError, match=f"no layer can be compressed.*{READ}"):
        prepare_model(model, usage)


def test_matrices_of_an_unknown_layout_are_named():
    model = tiny_llama()
    model.model.layers[0].mlp.stack = nn.Parameter(torch.randn(3, 8, 8))
    with pytest.warns(NumericalWarning, match=r"layers\.0\.mlp"):
        ready = prepare_model(model, observe_usage(model))
    assert ready.dense == {"model.layers.0.mlp": STACKED}


def test_reasons_stand_in_the_decomposition(tmp_path):
    text = text_file(tmp_path / "text.txt")
    with pytest.warns(NumericalWarning, match=DOWN):
        decomposition = factorize(with_mlp(reads), tiny_tokenizer(), small_recipe(text))
    assert decomposition.provenance["dense"] == {DOWN: READ}
    assert DOWN not in decomposition.shapes
