"""One file per method: a registry is a package whose modules are its entries.

The name of an entry is the name of its file. Files that begin with an underscore are
shared code. An entry that fails to import is an error, never a missing name. Other
distributions add entries through an entry-point group named like the package.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from functools import cached_property
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spectrim.errors import InputError, UnknownNameError, did_you_mean

RENAMED = {
    ("allocation", "basis_importance"): "bsi",
    ("allocation", "effective_rank"): "d_rank",
    ("allocation", "heavy_tail"): "welore",
    ("allocation", "zero_sum"): "zs_svd",
    ("importance", "calibrated"): "scaled_fisher",
    ("refinement", "anchored"): "aa_svd",
    ("refinement", "block"): "block_distillation",
    ("refinement", "end_to_end"): "distillation",
    ("refinement", "lora"): "svd_llm_lora",
    ("refinement", "next_token"): "finetune",
    ("refinement", "saes"): "saes_svd",
    ("refinement", "shifted"): "svd_llm_update",
}
"""New names of entries, by kind and earlier name."""


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of entries that have none."""


class Registry:
    """The entries of `package`, e.g. `Registry("decomposition", "spectrim.decompositions")`."""

    def __init__(self, kind: str, package: str, declares: str = "", options: str = "Options"):
        """Describe a registry.

        Args:
            kind: what an entry is, for messages.
            package: its modules are the entries.
            declares: an attribute that only the package's entries have; "" for all modules.
            options: name of the entries' dataclass of options.
        """
        self.kind = kind
        self.package = package
        self._declares = declares
        self._options = options

    @cached_property
    def _entries(self) -> dict[str, ModuleType]:
        root = importlib.import_module(self.package)
        found = {
            info.name: importlib.import_module(f"{self.package}.{info.name}")
            for info in pkgutil.iter_modules(root.__path__)
            if not info.name.startswith("_") and not info.ispkg
        }
        for point in entry_points(group=self.package):
            found[point.name] = point.load()
        return {name: found[name] for name in sorted(found) if self._takes(found[name])}

    def _takes(self, module: Any) -> bool:
        return not self._declares or hasattr(module, self._declares)

    def names(self) -> list[str]:
        return list(self._entries)

    def get(self, name: str) -> Any:
        """Return the module that implements `name`. Raises UnknownNameError."""
        try:
            return self._entries[name]
        except KeyError:
            if (new := RENAMED.get((self.kind, name))) is not None:
                raise InputError(f"{self.kind} '{name}' is now named '{new}'") from None
            raise UnknownNameError(self.kind, name, self._entries) from None

    def options(self, name: str, given: dict[str, Any] | None = None) -> Any:
        """Return the `Options` dataclass of an entry, filled from `given`. Raises
        InputError.
        """
        cls = getattr(self.get(name), self._options, NoOptions)
        fields = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(given or {}) - fields:
            expected = ", ".join(sorted(fields)) or "no options"
            wrong = min(unknown)
            raise InputError(
                f"{self.kind} '{name}' has no option '{wrong}'{did_you_mean(wrong, fields)}; "
                f"it takes {expected}"
            )
        try:
            return TypeAdapter(cls).validate_python(given or {})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{self.kind} '{name}', option {place}: {first['msg']}") from error

    def summary(self, name: str) -> str:
        """Return the first line of the entry's docstring."""
        return (self.get(name).__doc__ or "").strip().splitlines()[0]
