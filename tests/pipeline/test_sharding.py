"""Two processes with half of the weights each while calibrating: the result of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spectrim.calibration.distributed import sharded_copy
from spectrim.checkpoint import load
from spectrim.checkpoint.save_sharded import open_streamed
from spectrim.errors import InputError
from spectrim.models.experts import fused_expert_names, split_experts
from spectrim.models.offload.mapped import map_weights
from spectrim.pipeline import passes
from spectrim.pipeline.calibrate import calibrate
from spectrim.pipeline.plan import factorize
from spectrim.pipeline.plan import plan as run_plan
from spectrim.pipeline.replace import replace_layers
from spectrim.runtime import distributed
from spectrim.runtime.cache import Cache
from spectrim.runtime.context import RunContext
from spectrim.runtime.snapshots import Snapshots
from tests.forks import in_processes, needs_fork
from tests.runs import small_recipe, text_file
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import FLOAT64_RELATIVE

pytestmark = [pytest.mark.slow, needs_fork]


def saved(place: Path, name: str) -> Path:
    TINY_MODELS[name]().save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    return place / "model"


def mapped(place: Path):
    return map_weights(open_streamed(place, dtype=torch.float64).streamed)


def compressed(model, recipe, fsdp: bool = False):
    """Return a plan with every step of the default, and the logits of its model."""
    context = RunContext(fsdp=fsdp)
    decomposition = factorize(model, tiny_tokenizer(), recipe, context)
    plan = run_plan(decomposition, recipe)
    smaller = replace_layers(model, decomposition, plan)
    return plan, smaller(tiny_tokens()).logits.detach()


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2", "moe"])
def test_the_plan_and_the_weights(tmp_path, monkeypatch, name):
    """Both passes run in shards; the second one on the model cut to the averaging budget."""
    place = saved(tmp_path, name)
    recipe = small_recipe(text_file(tmp_path / "text.txt"))
    shares = []

    def sharded(model):
        copied = sharded_copy(model)
        own = sum(p.to_local().numel() for p in copied.parameters())
        shares.append(own / sum(p.numel() for p in model.parameters()))
        return copied

    def work():
        monkeypatch.setattr(passes, "sharded_copy", sharded)
        return *compressed(mapped(place), recipe, fsdp=True), shares

    one, logits = compressed(load(place, dtype=torch.float64)[0], recipe)
    for plan, found, held in in_processes(tmp_path / "two", work):
        assert plan.ranks == one.ranks
        assert plan.predicted_loss == pytest.approx(one.predicted_loss, rel=FLOAT64_RELATIVE)
        torch.testing.assert_close(found, logits, rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE)
        assert held == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize("name", ["tied", "gpt2", "moe"])
def test_mapped_weights_are_those_of_the_checkpoint(tmp_path, monkeypatch, name):
    place = saved(tmp_path, name)

    def work():
        model = mapped(place)
        maps = Path("/proc/self/maps").read_text().splitlines()
        files = [line.split() for line in maps if ".safetensors" in line]
        ranges = [[int(end, 16) for end in line[0].split("-")] for line in files]
        pages = [p.data_ptr() for p in model.parameters()]
        inside = [any(low <= page < high for low, high in ranges) for page in pages]
        return model(tiny_tokens()).logits.detach(), all(inside)

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    found = in_processes(tmp_path / "two", work)
    model = load(place, dtype=torch.float64)[0]
    split_experts(model, fused_expert_names(model))
    expected = model(tiny_tokens()).logits.detach()
    for logits, inside in found:
        torch.testing.assert_close(
            logits, expected, rtol=FLOAT64_RELATIVE, atol=FLOAT64_RELATIVE
        )
        assert inside
    assert list((tmp_path / "tmp").iterdir()) == []


def test_processes_that_stored_unlike_parts_go_on_together(tmp_path, monkeypatch):
    """The first has two batches of four left, the second all of its three."""
    monkeypatch.setattr("spectrim.runtime.snapshots.SECONDS_BETWEEN_SAVES", 0.0)
    text = text_file(tmp_path / "text.txt")
    given = {"data": str(text), "sequences": 7, "length": 24, "tokens_per_batch": 24}
    recipe = small_recipe(text).with_changes(
        hessian_averaging={"weight": 0.0}, calibration=given
    )
    cache, model = Cache(tmp_path / "cache"), tiny_llama().double()

    def stopping(items, what, total):
        for number, item in enumerate(items):
            if number >= 3:
                raise InputError("stopped")
            yield item

    def stopped():
        if distributed.process_index() == 1:
            first = iter([True])
            monkeypatch.setattr(Snapshots, "due", lambda self: next(first, False))
        with pytest.raises(InputError, match="stopped"):
            calibrate(model, tiny_tokenizer(), recipe, RunContext(cache, stopping, fsdp=True))

    def gone_on():
        found = calibrate(model, tiny_tokenizer(), recipe, RunContext(cache, fsdp=True))
        return found.states["gradient_covariance"]

    in_processes(tmp_path / "first", stopped)
    assert len(list(cache.root.glob("*.parts/sums-*"))) == 2
    expected = calibrate(model, tiny_tokenizer(), recipe).states["gradient_covariance"]
    for found in in_processes(tmp_path / "second", gone_on):
        for name, state in expected.items():
            torch.testing.assert_close(found[name], state)
