"""What was written is compared with the model in memory before it counts as saved."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectrim.checkpoint import SaveOptions, load, save_compressed, verify
from spectrim.errors import CheckpointError, ModelError, NumericalWarning
from spectrim.pipeline.replace import cast_for_saving
from tests.checkpoint.compressing import compress, logits
from tests.tiny_models import tiny_llama, tiny_tokenizer

NORM = "model.norm.weight"


@pytest.fixture
def small():
    model = tiny_llama()
    return model, compress(model, "lowrank")


def spoil(monkeypatch, model, change) -> None:
    """Let `change` happen to the directory right after transformers wrote it."""
    original = model.save_pretrained

    def save(directory, **options):
        original(directory, **options)
        change(directory)

    monkeypatch.setattr(model, "save_pretrained", save)


def rewrite(directory, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def set_config(directory, **values) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


FAULTS = {
    "no config": lambda d: (d / "config.json").unlink(),
    "no weights": lambda d: (d / "model.safetensors").unlink(),
    "a tensor less": lambda d: rewrite(d, lambda t: t.pop(NORM)),
    "a tensor more": lambda d: rewrite(d, lambda t: t.update(more=torch.zeros(1))),
    "another value": lambda d: rewrite(d, lambda t: t[NORM].mul_(1.5)),
    "another dtype": lambda d: rewrite(d, lambda t: t.update({NORM: t[NORM].half()})),
    "another depth": lambda d: set_config(d, num_hidden_layers=1),
    "another activation": lambda d: set_config(d, hidden_act="relu"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_write_is_no_result(small, tmp_path, monkeypatch, fault):
    spoil(monkeypatch, small[0], fault)
    with pytest.raises(CheckpointError):
        save_compressed(small[0], None, tmp_path / "a", small[1])
    assert list(tmp_path.iterdir()) == []


def test_without_room_for_a_copy_all_but_the_forward_pass_is_compared(
    small, tmp_path, monkeypatch
):
    monkeypatch.setattr(verify, "_fits", lambda model: False)
    model, config = small
    directory = save_compressed(model, None, tmp_path / "a", config)
    assert torch.equal(logits(load(directory)[0]), logits(model))
    for name in ("another value", "another depth", "a tensor less"):
        with monkeypatch.context() as patch:
            spoil(patch, model, FAULTS[name])
            with pytest.raises(CheckpointError):
                save_compressed(model, None, tmp_path / "b", config)
    assert not (tmp_path / "b").exists()


def test_large_models_are_compared_in_part(small, tmp_path, monkeypatch):
    model, config = small
    monkeypatch.setattr(verify, "_MOST_COMPARED", 1000)
    names = list(model.state_dict())
    spread = verify._spread(names, model.state_dict())
    assert 0 < len(spread) < len(names)
    save_compressed(model, None, tmp_path / "a", config)


def test_an_overflow_of_half_precision_names_the_tensor(small, tmp_path):
    model, config = small
    model.model.layers[1].mlp.up_proj.left.weight.data[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"up_proj\.left\.weight .* float16.*bfloat16"):
        cast_for_saving(model, torch.float16)
    with pytest.raises(ModelError, match=r"up_proj\.left\.weight"):
        save_compressed(model.half(), None, tmp_path / "a", config)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_overflow_are_a_warning(small, tmp_path):
    model, config = small
    model.lm_head.weight.data.fill_(6e4)
    model.model.norm.weight.data.fill_(6e4)
    with pytest.warns(NumericalWarning, match="not finite in torch.float16"):
        save_compressed(model.half(), None, tmp_path / "a", config)


class Broken:
    """A tokenizer that cannot be saved."""

    def save_pretrained(self, directory) -> None:
        raise OSError("no such plug-in")


def test_what_fails_after_the_weights_is_a_warning(small, tmp_path):
    def fail() -> str:
        raise ZeroDivisionError("no figures")

    options = SaveOptions(card=fail, extras={"a.json": fail, "b.json": "{}"})
    with pytest.warns(UserWarning, match="\\.json") as caught:
        directory = save_compressed(small[0], Broken(), tmp_path / "a", small[1], options)
    texts = " ".join(str(warning.message) for warning in caught)
    for part in ("tokenizer", "no such plug-in", "README.md", "a.json", "no figures"):
        assert part in texts
    assert (directory / "b.json").read_text() == "{}"
    assert torch.equal(logits(load(directory)[0]), logits(small[0]))


def test_processor_files_travel(small, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("preprocessor_config.json", "processor_config.json"):
        (source / name).write_text(f'{{"name": "{name}"}}')
    (source / "secret.py").write_text("1")
    options = SaveOptions(source=source)
    directory = save_compressed(small[0], tiny_tokenizer(), tmp_path / "a", small[1], options)
    assert "preprocessor" in (directory / "preprocessor_config.json").read_text()
    assert (directory / "processor_config.json").is_file()
    assert not (directory / "secret.py").exists()


def test_adapters_are_not_left_out_silently(small, tmp_path):
    peft = pytest.importorskip("peft")
    model, config = small
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    with pytest.raises(ModelError, match="merge"):
        save_compressed(model, None, tmp_path / "a", config)
