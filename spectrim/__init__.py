"""spectrim: language models made smaller by low-rank decomposition guided by the loss.

Importing it lets `transformers` load compressed checkpoints with plain `from_pretrained`.

    model, tokenizer = spectrim.load("name or directory")
    result = spectrim.compress(model, tokenizer, spectrim.Recipe(budget=0.8))
    spectrim.save(result.model, tokenizer, "directory")
    spectrim.evaluate(result.model, tokenizer, "text.txt")

The steps of `compress`, each a value to look at, edit and start again from:

    calibration = spectrim.calibrate(model, tokenizer, recipe)
    decomposition = spectrim.decompose(model, calibration, recipe)
    decomposition = spectrim.probe_curves(model, tokenizer, decomposition, recipe)
    plan = spectrim.plan(decomposition, recipe)
    smaller = spectrim.replace_layers(model, decomposition, plan)
    smaller = spectrim.refine(model, smaller, tokenizer, recipe)

And around it:

    spectrim.bench(model, tokenizer, {"mine": recipe, "theirs": other}, (0.8, 0.6))
    spectrim.prune_for_task(model, tokenizer, recipe_with_a_task).model
    spectrim.load("elastic directory", budget=0.6)  # one size of a file of many
    spectrim.resize(model, 0.5)  # another size of it, in place
    spectrim.fuse(result.model)  # faster inference in place; spectrim.unfuse undoes it
"""

from __future__ import annotations

from spectrim import import_hook
from spectrim.lazy import attach
from spectrim.runtime.log_filters import install_log_filters
from spectrim.version import __version__

install_log_filters()  # transformers imports torchao where it is installed
import_hook.register_if_imported()  # transformers learns the format when it is needed

__getattr__, __dir__ = attach(__name__, __file__)
__all__ = ["__version__", *__dir__()]  # noqa: PLE0604
