"""Several processes at one pipeline: the plan, the model and the figures of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spectrim.checkpoint import SaveOptions, load, save_distributed, save_together
from spectrim.data import BlockSettings
from spectrim.errors import InputError, ModelError, SpectrimError
from spectrim.pipeline.benchmark import BenchSettings, bench
from spectrim.pipeline.calibrate import calibrate as run_calibrate
from spectrim.pipeline.evaluate import evaluate
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.recipe import ProbeRecipe, Recipe, RefinementRecipe
from spectrim.pipeline.refine import refine
from spectrim.pipeline.replace import replace_layers
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from tests.forks import in_processes, needs_fork
from tests.runs import Forwards, small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import (
    DIVERGENCE_ABSOLUTE,
    DIVERGENCE_RELATIVE,
    FLOAT32_RELATIVE,
    FLOAT64_RELATIVE,
    PRODUCT_ABSOLUTE,
)

pytestmark = [pytest.mark.slow, needs_fork]
UNMEASURED = ProbeRecipe(per_layer=False, joint=False)


@pytest.fixture
def text(tmp_path) -> Path:
    return text_file(tmp_path / "text.txt")


def run(model, recipe: Recipe, output: Path, cache: Cache) -> dict[str, object]:
    """From tokens to a checkpoint and its figures."""
    tokenizer = tiny_tokenizer()
    decomposition = factorize(model, tokenizer, recipe, RunContext(cache))
    plan = run_plan(decomposition, recipe)
    smaller = replace_layers(model, decomposition, plan, torch.float32)
    smaller = refine(model, smaller, tokenizer, recipe)
    save_together(smaller, tokenizer, output, smaller.config.quantization_config, SaveOptions())
    settings = BlockSettings(length=24, max_tokens=400, keep_tail=True)
    figures = evaluate(
        smaller.to(model.dtype), tokenizer, recipe.calibration.data, settings, model
    )
    return {"plan": plan, "figures": figures}


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2", "moe"])
def test_the_plan_the_checkpoint_and_the_figures(tmp_path, text, name):
    model = TINY_MODELS[name]().double()
    recipe = small_recipe(text, probe=UNMEASURED)
    two = in_processes(
        tmp_path / "two",
        lambda: run(model, recipe, tmp_path / "of two", Cache(tmp_path / "cache")),
    )
    one = run(model, recipe, tmp_path / "of one", Cache(None))
    for found in two:
        assert found["plan"].ranks == one["plan"].ranks
        assert found["plan"].predicted_loss == pytest.approx(
            one["plan"].predicted_loss, rel=FLOAT64_RELATIVE
        )
        assert found["figures"] == two[0]["figures"]
        assert found["figures"] == pytest.approx(one["figures"], rel=FLOAT32_RELATIVE)
    assert len(list((tmp_path / "of two").glob("model-*-of-00002.safetensors"))) == 2
    assert not list(tmp_path.glob(".*"))
    check_same_model(tmp_path / "of one", tmp_path / "of two")


@torch.no_grad()
def check_same_model(first: Path, second: Path) -> None:
    one, other = (load(place)[0] for place in (first, second))
    assert one.state_dict().keys() == other.state_dict().keys()
    assert {n: t.shape for n, t in one.state_dict().items()} == {
        n: t.shape for n, t in other.state_dict().items()
    }
    torch.testing.assert_close(
        one(tiny_tokens()).logits,
        other(tiny_tokens()).logits,
        rtol=0,
        atol=PRODUCT_ABSOLUTE,
    )


def test_what_two_keep_one_goes_on_from(tmp_path, text):
    model, recipe = tiny_llama().double(), small_recipe(text)
    cache = Cache(tmp_path / "cache")

    def work():
        decomposition = factorize(model, tiny_tokenizer(), recipe, RunContext(cache))
        return decomposition.curves, decomposition.correction

    one = factorize(model, tiny_tokenizer(), recipe)
    for curves, correction in in_processes(tmp_path / "two", work):
        assert list(curves) == list(one.curves)
        for name, curve in one.curves.items():
            torch.testing.assert_close(
                curves[name], curve, rtol=DIVERGENCE_RELATIVE, atol=DIVERGENCE_ABSOLUTE
            )
        assert len(correction.pairs) == len(one.correction.pairs)
    with Forwards(model) as forwards:
        factorize(model, tiny_tokenizer(), recipe, RunContext(cache))
    assert forwards.count == 0


def test_refining_by_both(tmp_path, text):
    """Blocks are trained on rows of one length: the mean of the parts is the mean."""
    model = tiny_llama()
    step = RefinementRecipe("block_distillation", {"epochs": 1, "out_metric": "gradient"})
    recipe = small_recipe(text, probe=UNMEASURED, refinement=(step,))
    two = in_processes(
        tmp_path / "two",
        lambda: run(tiny_llama(), recipe, tmp_path / "of two", Cache(None)),
    )
    one = run(model, recipe, tmp_path / "of one", Cache(None))
    for found in two:
        assert found["figures"]["loss"] == pytest.approx(
            one["figures"]["loss"], rel=FLOAT32_RELATIVE
        )
    check_same_model(tmp_path / "of one", tmp_path / "of two")


def test_both_go_on_where_they_stopped(tmp_path, text, monkeypatch):
    monkeypatch.setattr("spectrim.runtime.snapshots.SECONDS_BETWEEN_SAVES", 0.0)
    recipe = small_recipe(text, probe=UNMEASURED).with_changes(
        hessian_averaging={"weight": 0.0}, calibration={**small(text), "tokens_per_batch": 24}
    )
    cache, model = Cache(tmp_path / "cache"), tiny_llama()

    def stopping(items, what, total):
        for number, item in enumerate(items):
            if number >= 3:
                raise InputError("stopped")
            yield item

    def stopped():
        with pytest.raises(InputError, match="stopped"):
            run_calibrate(model, tiny_tokenizer(), recipe, RunContext(cache, stopping))

    def gone_on():
        with Forwards(model) as forwards:
            found = run_calibrate(model, tiny_tokenizer(), recipe, RunContext(cache))
        return forwards.count, found.states["input_covariance"]

    in_processes(tmp_path / "first", stopped)
    assert len(list(cache.root.glob("*.parts"))) == 2
    expected = run_calibrate(model, tiny_tokenizer(), recipe).states["input_covariance"]
    for forwards, found in in_processes(tmp_path / "second", gone_on):
        assert forwards < 1 + 8 / 2
        for name, state in expected.items():
            torch.testing.assert_close(found[name], state)
    assert not list(cache.root.glob("*.parts"))


def small(text: Path) -> dict[str, object]:
    return {"data": str(text), "sequences": 8, "length": 24}


def test_weights_that_one_process_cannot_use_end_both(tmp_path, text):
    def work():
        model = tiny_llama()
        if distributed.process_index() == 1:
            model.lm_head.weight.data[:] = torch.nan
        with pytest.raises(ModelError, match="not finite"):
            run_calibrate(model, tiny_tokenizer(), small_recipe(text))

    in_processes(tmp_path / "two", work)


def test_a_shard_that_one_process_cannot_write(tmp_path, text, monkeypatch):
    recipe = small_recipe(text, probe=UNMEASURED)
    write = save_distributed._write_own

    def failing(*given):
        if distributed.process_index() == 1:
            raise InputError("no space left")
        return write(*given)

    monkeypatch.setattr(save_distributed, "_write_own", failing)

    def work():
        with pytest.raises(SpectrimError, match="no space left"):
            run(tiny_llama(), recipe, tmp_path / "out", Cache(None))

    in_processes(tmp_path / "two", work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "two"]


def test_a_bench_by_two(tmp_path, text):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    recipes = {"svd": small_recipe(text, method="svd", allocation="uniform", probe=UNMEASURED)}

    def table(rows: Path | None):
        settings = BenchSettings(
            (str(text),), BlockSettings(length=24, max_tokens=400), rows=rows
        )
        return bench(model, tokenizer, recipes, (0.6,), settings)

    two = in_processes(tmp_path / "two", lambda: table(tmp_path / "rows"))
    one = table(None)
    for found in two:
        [row], [expected] = found.rows, one.rows
        assert row.error is None
        assert row.layer_bytes == expected.layer_bytes
        assert row.perplexity == pytest.approx(expected.perplexity, rel=FLOAT32_RELATIVE)
    assert [table(tmp_path / "rows").made, one.made] == [0, 1]
