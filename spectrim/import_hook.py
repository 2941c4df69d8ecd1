"""Register the checkpoint format when transformers' table of quantizers is imported.

`import spectrim` imports this file; `spectrim activate` installs a copy that is imported
whenever Python starts. It therefore imports next to nothing: an entry is added to the table,
and the rest of spectrim is imported only when a checkpoint needs it. Without spectrim nothing
is added.
"""

from __future__ import annotations

import sys

_TABLES = "transformers.quantizers.auto"


class _Finder:
    """An import finder that handles one import of one module and removes itself."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> object:
        if name != _TABLES:
            return None
        from importlib.machinery import PathFinder

        sys.meta_path.remove(cls)  # type: ignore[arg-type]
        spec = PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            _run_after(spec.loader, _add_entry)
        return spec


class _StandIn:
    """A placeholder that imports spectrim, whose classes replace it."""

    @staticmethod
    def from_dict(settings: dict[str, object], **kwargs: object) -> object:
        import spectrim.checkpoint

        return spectrim.checkpoint.SpectrimConfig.from_dict(settings, **kwargs)


def _run_after(loader: object, action: object) -> None:
    run = loader.exec_module  # type: ignore[attr-defined]

    def exec_module(module: object) -> None:
        run(module)
        action(module)  # type: ignore[operator]

    loader.exec_module = exec_module  # type: ignore[attr-defined]


def register_if_imported() -> None:
    """Add the entry if transformers' table of quantizers is already imported."""
    if (tables := sys.modules.get(_TABLES)) is not None:
        _add_entry(tables)


def _add_entry(tables: object) -> None:
    from importlib.util import find_spec

    if find_spec("spectrim") is not None:
        mapping = tables.AUTO_QUANTIZATION_CONFIG_MAPPING  # type: ignore[attr-defined]
        mapping.setdefault("spectrim", _StandIn)


sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
