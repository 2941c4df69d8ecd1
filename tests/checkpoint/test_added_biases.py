"""Methods that move what they cut into a bias, on models that have none: the result loads."""

from __future__ import annotations

import pytest
import torch

from spectrim.checkpoint import export_dense, export_self_contained, load
from spectrim.checkpoint.save import save
from spectrim.errors import ModelError
from spectrim.pipeline.compress import compress
from tests.checkpoint.compressing import logits
from tests.checkpoint.test_fresh_process import WITHOUT_SPECTRIM, run
from tests.runs import small_recipe, text_file
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.tolerances import DENSE_EXPORT_ABSOLUTE


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_file(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.mark.parametrize("kind", ["lowrank", "pivoted", "sparse_dictionary"])
def test_added_biases_round_trip(kind, text, tmp_path):
    recipe = small_recipe(text, method="afm", layer=kind)
    smaller = compress(tiny_llama(), tiny_tokenizer(), recipe).model
    directory = save(smaller, tiny_tokenizer(), tmp_path / "a")
    assert torch.equal(logits(load(directory)[0]), logits(smaller))
    entries = smaller.config.quantization_config.layers.values()
    assert all(entry["bias"] is True for entry in entries)
    with pytest.raises(ModelError, match="biases that the original architecture"):
        export_dense(directory, tmp_path / "dense")


@pytest.mark.slow
def test_they_load_without_spectrim(text, tmp_path):
    recipe = small_recipe(text, method="afm", layer="lowrank")
    smaller = compress(tiny_llama(), tiny_tokenizer(), recipe).model
    own = export_self_contained(save(smaller, None, tmp_path / "a"), tmp_path / "own")
    assert torch.equal(
        run(tmp_path, WITHOUT_SPECTRIM, [own], trust_remote_code=True)[str(own)],
        logits(smaller),
    )


def test_layers_with_a_bias_of_their_own_need_no_entry(text, tmp_path):
    recipe = small_recipe(text, method="afm", layer="lowrank")
    smaller = compress(tiny_gpt2(), tiny_tokenizer(), recipe).model
    entries = smaller.config.quantization_config.layers.values()
    assert not any("bias" in entry for entry in entries)
    dense = export_dense(save(smaller, None, tmp_path / "a"), tmp_path / "dense")
    difference = (logits(load(dense)[0]) - logits(smaller)).abs().max()
    assert difference <= DENSE_EXPORT_ABSOLUTE
