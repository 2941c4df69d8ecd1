"""One file for every size: what is cut from it, what is read, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM

import spectrim
from spectrim.checkpoint import (
    SpectrimConfig,
    export_dense,
    export_self_contained,
    export_size,
    save_compressed,
    sizes_of,
)
from spectrim.checkpoint.elastic import reading
from spectrim.errors import CheckpointError, InputError
from spectrim.models.replace import factored_layers
from spectrim.pipeline.elastic import hold_sizes, plan_elastic
from spectrim.pipeline.replace import replace_layers
from spectrim.planning.nested import nested_plan
from tests.checkpoint.compressing import logits
from tests.checkpoint.elastic_models import Elastic, decompose, elastic_recipe
from tests.tiny_models import TINY_MODELS, tiny_llama, tiny_tokenizer, tiny_tokens
from tests.tolerances import CUT_LOGITS_RELATIVE

MODELS = ("llama", "gpt2", "tied", "qwen2_bias", "moe", "mixtral")
BUDGETS = (0.4, 0.55, 0.7, 0.9)
ROOT = Path(__file__).parents[2]


class Cases(dict):
    """Tiny models with all their sizes, by architecture and kind, made when first used."""

    def __init__(self, root: Path):
        self.root = root

    def __missing__(self, key: tuple[str, str]) -> Elastic:
        name, kind = key
        self[key] = Elastic.make(TINY_MODELS[name](), kind, self.root / f"{name}-{kind}")
        return self[key]


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> Cases:
    return Cases(tmp_path_factory.mktemp("elastic"))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["pivoted", "lowrank"])
@pytest.mark.parametrize("name", MODELS)
def test_each_size_is_the_model_compressed_to_that_plan(elastic, name, kind):
    """By plain `from_pretrained`, `spectrim.load`, and in memory."""
    case = elastic[name, kind]
    for budget in BUDGETS:
        plan = nested_plan(case.decomposition, case.settings, case.sizes, budget)
        expected = logits(replace_layers(case.original, case.decomposition, plan))
        plain = AutoModelForCausalLM.from_pretrained(case.directory, spectrim_budget=budget)
        assert difference(logits(plain), expected) <= CUT_LOGITS_RELATIVE
        loaded, tokenizer = spectrim.load(case.directory, budget=budget)
        assert torch.equal(logits(loaded), logits(plain))
        assert tokenizer is not None
        spectrim.resize(case.held, budget)
        assert difference(logits(case.held), expected) <= CUT_LOGITS_RELATIVE
        assert {n: layer.rank for n, layer in factored_layers(loaded)} == plan.ranks
        described = loaded.config.quantization_config
        assert {n: e["rank"] for n, e in described.layers.items()} == plan.ranks
        assert described.provenance["plan"]["kept"] == pytest.approx(plan.kept)


def test_without_a_word_it_is_the_largest_or_what_the_config_states(elastic, tmp_path):
    case = elastic["llama", "pivoted"]
    largest = logits(spectrim.load(case.directory, budget=0.9)[0])
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(case.directory)), largest)
    copied = Path(shutil.copytree(case.directory, tmp_path / "copied"))
    smaller = logits(spectrim.load(case.directory, budget=0.5)[0])
    for place in ("spectrim_budget", "elastic"):
        config = json.loads((case.directory / "config.json").read_text())
        if place == "elastic":
            config["quantization_config"]["elastic"]["budget"] = 0.5
        else:
            config[place] = 0.5
        (copied / "config.json").write_text(json.dumps(config))
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(copied)), smaller)


def test_a_loss_or_bytes_choose_the_size(elastic):
    case = elastic["llama", "pivoted"]
    target = case.sizes.loss(0.6)
    model, _ = spectrim.load(case.directory, target_loss=target)
    plan = model.config.quantization_config.provenance["plan"]
    assert plan["predicted_loss"] <= target * (1 + 1e-4)
    assert plan["budget"] <= 0.6
    whole = sum(p.nbytes for p in spectrim.load(case.directory, budget=0.7)[0].parameters())
    model, _ = spectrim.load(case.directory, size=whole)
    assert 0.98 * whole <= sum(p.nbytes for p in model.parameters()) <= whole


class CountedReads:
    """Bytes of all values that leave safetensors, by transformers and by the cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.bytes = 0
        for module in (reading, sys.modules["transformers.modeling_utils"]):
            monkeypatch.setattr(module, "safe_open", self._open)

    def _open(self, *args, **kwargs):
        return _CountedFile(safe_open(*args, **kwargs), self)


class _CountedFile:
    def __init__(self, file, counter):
        self.file, self.counter = file, counter

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        self.file.__exit__(*error)

    def __getattr__(self, name):
        assert name in ("keys", "metadata"), f"{name} would read tensors uncounted"
        return getattr(self.file, name)

    def get_slice(self, name):
        return _CountedSlice(self.file.get_slice(name), self.counter)


class _CountedSlice:
    def __init__(self, stored, counter):
        self.stored, self.counter = stored, counter

    def __getattr__(self, name):
        return getattr(self.stored, name)

    def __getitem__(self, key):
        found = self.stored[key]
        self.counter.bytes += found.nbytes
        return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_bias"])
def test_only_the_bytes_of_the_size_are_read(elastic, name, monkeypatch):
    case = elastic[name, "lowrank"]
    file = (case.directory / "model.safetensors").stat().st_size
    read = []
    for budget in BUDGETS:
        counted = CountedReads(monkeypatch)
        model = AutoModelForCausalLM.from_pretrained(case.directory, spectrim_budget=budget)
        monkeypatch.undo()
        components = {n for n, layer in case.sizes.layers.items() if not layer.has_dense}
        dense = components - set(model.config.quantization_config.layers)
        extra = sum(
            case.stored(n) - case.dense(n) for n in dense if case.sizes.layers[n].components
        )
        tied = {p.data_ptr(): p.nbytes for p in model.parameters()}
        assert counted.bytes == sum(tied.values()) + extra
        read.append(counted.bytes)
    assert read == sorted(read)
    assert read[0] < 0.7 * file


def test_what_lies_behind_the_size_is_not_looked_at(elastic, tmp_path):
    """The rows of later components are overwritten by NaN."""
    case = elastic["llama", "pivoted"]
    before = logits(spectrim.load(case.directory, budget=0.5)[0])
    copied = Path(shutil.copytree(case.directory, tmp_path / "copied"))
    ranks = case.sizes.ranks(0.5)
    path = copied / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name, layer in case.sizes.layers.items():
        if ranks[name] is not None:
            begin, end = header[f"{name}.components"]["data_offsets"]
            skipped = ranks[name] * sum(layer.shape) * 4
            data[start + begin + skipped : start + end] = b"\xff" * (end - begin - skipped)
    path.write_bytes(data)
    assert torch.equal(logits(spectrim.load(copied, budget=0.5)[0]), before)
    with pytest.raises(spectrim.SpectrimError):
        spectrim.load(copied, budget=0.9)


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["pivoted", "lowrank"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "moe"])
def test_resizing_is_loading_at_another_size(elastic, name, kind):
    case = elastic[name, kind]
    model, _ = spectrim.load(case.directory, budget=0.7)
    for budget in (0.45, 0.9, 0.4, 0.6):
        assert spectrim.resize(model, budget) is model
        expected = spectrim.load(case.directory, budget=budget)[0]
        assert difference(logits(model), logits(expected)) <= CUT_LOGITS_RELATIVE
        names = [n for n, _ in model.named_parameters()]
        assert sorted(names) == sorted(n for n, _ in expected.named_parameters())
        found, wanted = (m.config.quantization_config.layers for m in (model, expected))
        assert found == wanted


def test_plain_factors_shrink_without_the_file(elastic, tmp_path):
    case = elastic["llama", "lowrank"]
    copied = Path(shutil.copytree(case.directory, tmp_path / "copied"))

    def dense_at(budget: float) -> set[str]:
        return {n for n, rank in case.sizes.ranks(budget).items() if rank is None}

    kept = [kept for kept, _ in case.sizes.curve() if kept >= BUDGETS[0]]
    whole_steps = [budget for budget in kept if dense_at(budget) == dense_at(kept[0])]
    assert len(whole_steps) > 5
    model, _ = spectrim.load(copied, budget=whole_steps[-1])
    expected = logits(spectrim.load(copied, budget=whole_steps[0])[0])
    shutil.rmtree(copied)
    spectrim.resize(model, whole_steps[0])
    assert difference(logits(model), expected) <= CUT_LOGITS_RELATIVE
    with pytest.raises(CheckpointError, match="cannot be read"):
        spectrim.resize(model, 0.9)


def test_a_cut_model_saves_and_exports_as_any_other(elastic, tmp_path):
    case = elastic["gpt2", "pivoted"]
    cut, tokenizer = spectrim.load(case.directory, budget=0.6)
    fixed = spectrim.save(cut, tokenizer, tmp_path / "saved")
    written = export_size(case.directory, tmp_path / "exported", {"budget": 0.6})
    for directory in (fixed, written):
        config = json.loads((directory / "config.json").read_text())
        assert "elastic" not in config["quantization_config"]
        assert "spectrim_budget" not in config
        assert torch.equal(logits(spectrim.load(directory)[0]), logits(cut))
        with pytest.raises(InputError, match="one size"):
            spectrim.load(directory, budget=0.6)
        with pytest.raises(InputError, match="not cut from an elastic"):
            spectrim.resize(spectrim.load(directory)[0], 0.5)
    dense = export_dense(case.directory, tmp_path / "dense", budget=0.6)
    plain = AutoModelForCausalLM.from_pretrained(dense)
    assert difference(logits(plain), logits(cut)) <= CUT_LOGITS_RELATIVE
    with pytest.raises(InputError, match="several sizes"):
        export_self_contained(case.directory, tmp_path / "own")


def test_the_base_model_alone_is_cut_too(elastic):
    case = elastic["llama", "pivoted"]
    whole = AutoModelForCausalLM.from_pretrained(case.directory, spectrim_budget=0.5)
    bare = AutoModel.from_pretrained(case.directory, spectrim_budget=0.5)
    with torch.no_grad():
        expected = whole.model(tiny_tokens()).last_hidden_state
        found = bare(tiny_tokens()).last_hidden_state
    assert torch.equal(found, expected)


def test_half_precision(tmp_path):
    case = Elastic.make(tiny_llama(), "pivoted", tmp_path / "half", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(case.directory, spectrim_budget=0.6)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    exact = AutoModelForCausalLM.from_pretrained(
        case.directory, spectrim_budget=0.6, dtype=torch.float32
    )
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    assert difference(logits(model).float(), logits(exact)) <= 0.05


def test_a_fused_model_is_not_resized(elastic):
    model, _ = spectrim.load(elastic["llama", "pivoted"].directory, budget=0.5)
    spectrim.fuse(model)
    with pytest.raises(InputError, match="unfuse"):
        spectrim.resize(model, 0.6)
    spectrim.unfuse(model)
    spectrim.resize(model, 0.6)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"budget": 0.3}, "outside this checkpoint's sizes, 0.4 to 0.9"),
        ({"budget": True}, "expected a number"),
        ({"size": "lots"}, "expected bytes"),
        ({"size": 100}, "smallest size"),
        ({"target_loss": 0.0}, "raise it"),
        ({"budget": 0.5, "target_loss": 1.0}, "give one of"),
    ],
)
def test_sizes_that_it_does_not_have_are_refused(elastic, wish, message):
    with pytest.raises(InputError, match=message):
        spectrim.load(elastic["llama", "pivoted"].directory, **wish)


@pytest.mark.parametrize("value", [0.95, "half", True])
def test_a_keyword_of_from_pretrained_is_checked(elastic, value):
    with pytest.raises(InputError, match="budget"):
        AutoModelForCausalLM.from_pretrained(
            elastic["llama", "pivoted"].directory, spectrim_budget=value
        )


DAMAGES = {
    "kind": lambda e: e.update(kind="sparse_dictionary"),
    "range": lambda e: e.update(smallest=0.95),
    "budget": lambda e: e.update(budget=2),
    "field": lambda e: e.pop("losses"),
    "losses": lambda e: e["losses"].pop(),
    "step": lambda e: e["steps"].append([0, 10**6]) or e["losses"].append(0.0),
    "index": lambda e: e["steps"].append([99, 1]) or e["losses"].append(0.0),
    "downward": lambda e: e["steps"].append(e["steps"][0]) or e["losses"].append(0.0),
    "name": lambda e: e["layers"][0].update(name="model.nothing"),
    "twice": lambda e: e["layers"][0].update(name=e["layers"][1]["name"]),
    "shape": lambda e: e["layers"][0].update(shape=[64, 31]),
    "components": lambda e: e["layers"][0].update(components=10**6),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_configs_are_refused(elastic, tmp_path, damage):
    case = elastic["llama", "pivoted"]
    copied = Path(shutil.copytree(case.directory, tmp_path / "copied"))
    config = json.loads((copied / "config.json").read_text())
    DAMAGES[damage](config["quantization_config"]["elastic"])
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, InputError)):
        spectrim.load(copied)


def test_an_incomplete_file_is_refused(elastic, tmp_path):
    case = elastic["llama", "pivoted"]
    other = Elastic.make(tiny_llama(), "pivoted", tmp_path / "other", largest=0.6)
    shutil.copy(case.directory / "config.json", other.directory / "config.json")
    with pytest.raises(CheckpointError):
        spectrim.load(other.directory, budget=0.5)


def test_a_config_that_does_not_describe_the_model_is_not_saved(tmp_path):
    decomposition, recipe = decompose(tiny_llama(), "pivoted")
    sizes, plan = plan_elastic(decomposition, recipe)
    held = hold_sizes(tiny_llama(), decomposition, sizes, plan)
    entry = json.loads(json.dumps(held.config.quantization_config.elastic))
    smaller, _ = plan_elastic(decomposition, elastic_recipe("pivoted", 0.6))
    assert smaller.stored < sizes_of(entry).stored
    entry["layers"].pop()
    entry["steps"] = [s for s in entry["steps"] if s[0] < len(entry["layers"])]
    entry["losses"] = entry["losses"][: len(entry["steps"]) + 1]
    with pytest.raises(CheckpointError, match="differ at 1 elastic layers"):
        save_compressed(held, tiny_tokenizer(), tmp_path / "out", SpectrimConfig(elastic=entry))
    assert not (tmp_path / "out").exists()


FRESH = """
import sys
import torch
import spectrim
from transformers import AutoModelForCausalLM
directory, out, *budgets = sys.argv[1:]
tokens = torch.load(out)
found = []
for budget in map(float, budgets):
    model = AutoModelForCausalLM.from_pretrained(directory, spectrim_budget=budget)
    with torch.no_grad():
        found.append(model(tokens).logits)
torch.save(found, out)
"""


@pytest.mark.slow
def test_a_fresh_process_loads_each_size(elastic, tmp_path):
    case = elastic["mixtral", "pivoted"]
    out = tmp_path / "out.pt"
    torch.save(tiny_tokens(), out)
    command = [sys.executable, "-P", "-c", FRESH, str(case.directory), str(out)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *map(str, BUDGETS)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for budget, found in zip(BUDGETS, torch.load(out), strict=True):
        assert torch.equal(found, logits(spectrim.load(case.directory, budget=budget)[0]))
