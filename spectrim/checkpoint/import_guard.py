"""Stop stock transformers at a checkpoint that it would fill with random weights.

Without our plug-in transformers only warns of an unknown `quant_method`, and initializes every
tensor that it does not find. It does stop where config.json names a file of weights that can be
none, and repeats that name: so the name is the sentence to read. The plug-in removes it before
the files are looked for.
"""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from spectrim.runtime.files import write_text
from spectrim.version import QUANT_METHOD, install_words

GUARD = "transformers_weights"
"""The entry of config.json that names the file of weights."""
SELF_CONTAINED = (
    "this checkpoint comes with the code that loads it: give trust_remote_code=True to "
    "from_pretrained"
)


def notice() -> str:
    """Return what transformers says where spectrim was not imported."""
    return (
        "this checkpoint was compressed by spectrim: install it "
        f"({install_words()}) and `import spectrim` before from_pretrained"
    )


def without_guard(config: Any) -> Any:
    """Remove the sentence from a config that is about to be loaded; return the config."""
    vars(config).pop(GUARD, None)
    return config


def add_guard(path: Path, words: str) -> None:
    """Add the sentence to a config.json."""
    values = json.loads(path.read_text(encoding="utf-8")) | {GUARD: words}
    write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def guard_saved_configs() -> None:
    """Let every config of a compressed model carry the sentence where it is written.

    That covers `save_pretrained`, `push_to_hub` and trainers, which do not ask us.
    """
    write = PreTrainedConfig.to_json_file
    if hasattr(write, "spectrim"):
        return

    @wraps(write)
    def to_json_file(self: Any, json_file_path: Any, *args: Any, **kwargs: Any) -> None:
        write(self, json_file_path, *args, **kwargs)
        if _is_compressed(self):
            add_guard(Path(json_file_path), notice())

    to_json_file.spectrim = True  # type: ignore[attr-defined]
    PreTrainedConfig.to_json_file = to_json_file  # type: ignore[method-assign]


def _is_compressed(config: Any) -> bool:
    settings = getattr(config, "quantization_config", None)
    if isinstance(settings, dict):
        return settings.get("quant_method") == QUANT_METHOD
    return getattr(settings, "quant_method", None) == QUANT_METHOD
