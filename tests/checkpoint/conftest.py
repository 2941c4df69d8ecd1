from __future__ import annotations

import pytest

from spectrim.checkpoint import save_compressed
from tests.checkpoint.compressing import KINDS, Saved, compress, logits
from tests.tiny_models import TINY_MODELS, tiny_tokenizer


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Saved]:
    """Every tiny model compressed with every kind, on disk, with its logits."""
    root = tmp_path_factory.mktemp("saved")
    found = {}
    for name, build in TINY_MODELS.items():
        for kind in KINDS:
            model = build()
            config = compress(model, kind)
            directory = root / f"{name}-{kind}"
            found[name, kind] = Saved(directory, logits(model))
            save_compressed(model, tiny_tokenizer(), directory, config)
    return found
