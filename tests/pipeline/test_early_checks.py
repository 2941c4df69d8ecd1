"""What needs no weights is told before they are read."""

from __future__ import annotations

import pytest

from spectrim.errors import InputError, ModelError
from spectrim.pipeline import early_checks
from spectrim.pipeline.early_checks import check_early, check_room
from spectrim.pipeline.recipe import Recipe
from tests.tiny_models import tiny_llama, tiny_moe, tiny_tokenizer


@pytest.fixture
def directory(tmp_path):
    """A model whose weights cannot be read, and whose headers can."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    return tmp_path


def recipe(directory, **values):
    calibration = {"data": str(directory / "text.txt")} | values.pop("calibration", {})
    return Recipe(**values).with_changes(calibration=calibration)


def test_a_good_run_passes(directory):
    wanted = recipe(directory, include=("mlp",), exclude=("up_proj",))
    check_early(str(directory / "model"), wanted)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"include": ("no_such",)}, ModelError, "pattern 'no_such' matches no linear layer"),
        ({"exclude": (".",)}, ModelError, "none left by the patterns"),
        ({"calibration": {"data": "missing.txt"}}, InputError, "no such file: 'missing.txt'"),
        ({"calibration": {"data": "missing.jsonl:text"}}, InputError, "no such file"),
        ({"calibration": {"data": "what.is.this"}}, InputError, "cannot tell what text"),
        ({"calibration": {"length": 100_000}}, InputError, "the model reads at most"),
    ],
)
def test_what_is_wrong(directory, values, error, words):
    with pytest.raises(error, match=words):
        check_early(str(directory / "model"), recipe(directory, **values))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("blank.txt", " ", "holds no text"),
        ("latin.txt", "caf\xe9", "is not UTF-8 text"),
        ("rows.jsonl", '{"body": "b"}', "has no field 'text'"),
        ("chat.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "no chat template"),
        ("empty/*.txt", None, "holds no file of text"),
    ],
)
def test_texts_that_cannot_be_read(directory, name, content, words):
    if content is not None:
        (directory / name).write_text(content, encoding="latin-1")
    wanted = recipe(directory, calibration={"data": str(directory / name)})
    with pytest.raises(InputError, match=words):
        check_early(str(directory / "model"), wanted)


def test_no_tokenizer(directory):
    for path in (directory / "model").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        check_early(str(directory / "model"), recipe(directory))


def test_names_of_experts_are_known_only_later(tmp_path):
    tiny_moe().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the cat")
    check_early(str(tmp_path / "model"), recipe(tmp_path, include=("experts.up.0",)))


def test_the_least_that_a_result_can_be(directory, monkeypatch):
    model, wanted = str(directory / "model"), recipe(directory, budget=0.5)
    asked = []
    monkeypatch.setattr(early_checks, "check_space", lambda *given: asked.append(given))
    check_room(model, directory / "out", wanted)
    check_room(model, directory / "out", wanted.with_changes(save_dtype="bfloat16"))
    [(_, full, _), (_, half, _)] = asked
    size = (directory / "model" / "model.safetensors").stat().st_size
    assert 0.4 * size < full < 0.5 * size
    assert half == pytest.approx(full / 2, abs=2)
