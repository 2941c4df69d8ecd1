"""One module of Python that loads a checkpoint without spectrim, cut from our own sources.

Starting from `remote_model.py`, the definitions it needs are found by name, with what they
need in turn; methods that only compress or export are left out. Nothing is written twice.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import symtable
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

from spectrim.checkpoint.export import remote_model
from spectrim.errors import InputError
from spectrim.layers import layer_class
from spectrim.layers.quantized import quantizer_class

MODULE = "modeling_spectrim"
ROOTS = {"RemoteConfig", "RemoteModel"}
_SOURCES = (
    "spectrim.errors",
    "spectrim.version",
    "spectrim.models.linear",
    "spectrim.models.experts",
    "spectrim.models.replace",
    "spectrim.models.expert_removal",
    "spectrim.layers._embedding",
    "spectrim.layers._lazy_weight",
    "spectrim.layers._base",
    "spectrim.layers.pivoted",
    "spectrim.layers.shared_basis",
    "spectrim.layers.quantized._base",
    "spectrim.layers.quantized._with_correction",
    "spectrim.layers.quantized._packing",
)
_CHECKPOINT_SOURCES = (
    "spectrim.checkpoint.config_entries",
    "spectrim.checkpoint.config",
    "spectrim.checkpoint.empty_layers",
    "spectrim.checkpoint.placeholders",
    "spectrim.checkpoint.import_guard",
    "spectrim.checkpoint.transformers_plugin",
    "spectrim.checkpoint.export.remote_model",
)
_NOT_FOR_INFERENCE = {"cost", "dense", "from_factors", "from_full", "matrices", "_of"}
_LOOK_UP = """
def {WHAT}_class(name: str) -> type[nn.Module]:
    kinds = {KINDS}
    if name not in kinds:
        raise UnknownNameError("{WHAT}", name, kinds)
    return kinds[name]
"""


def remote_code(kinds: Iterable[str], compressors: Iterable[str] = ()) -> str:
    """Return the source of a module with the layer `kinds` and `compressors`.

    Raises InputError for one that needs more than its own file, torch and transformers.
    """
    layers = {kind: layer_class(kind) for kind in sorted(kinds)}
    bases = {name: quantizer_class(name) for name in sorted(compressors)}
    kinds = [*layers, *bases]
    imports: dict[str, str] = {}
    definitions = {
        "layer_class": _look_up("layer", layers),
        "quantizer_class": _look_up("quantizer", bases),
    }
    clashes: set[str] = set()
    for module in _modules([*layers.values(), *bases.values()]):
        clashes |= _collect(module, imports, definitions)
    chosen = _reachable(imports | definitions)
    if twice := clashes & chosen:
        raise InputError(f"two files of the layer types {kinds} define {sorted(twice)}; rename")
    lines = sorted({imports[name] for name in imports if name in chosen})
    body = [definitions[name] for name in definitions if name in chosen]
    head = f'"""{remote_model.__doc__}"""\n\nfrom __future__ import annotations\n\n'
    code = head + "\n".join(lines) + "\n\n\n" + "\n\n\n".join(body) + "\n"
    _check_complete(code, kinds)
    return code


def _modules(classes: list[type]) -> list[ModuleType]:
    own = [importlib.import_module(cls.__module__) for cls in classes]
    found = [*map(importlib.import_module, _SOURCES), *own]
    return list(dict.fromkeys([*found, *map(importlib.import_module, _CHECKPOINT_SOURCES)]))


def _look_up(what: str, classes: Mapping[str, type]) -> str:
    entries = ", ".join(f'"{name}": {cls.__name__}' for name, cls in classes.items())
    source = _LOOK_UP.strip().replace("{KINDS}", f"{{{entries}}}")
    return source.replace("{WHAT}", what)


def _collect(
    module: ModuleType, imports: dict[str, str], definitions: dict[str, str]
) -> set[str]:
    """Add the import line and the source of each name that a module binds at its top;
    gives the names that were already bound to something else."""
    source = inspect.getsource(module)
    clashes: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(_foreign_imports(node))
        for name in _defined(node):
            text = _text(source, node)
            if definitions.setdefault(name, text) != text:
                clashes.add(name)
    return clashes


def _foreign_imports(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    origin = str(node.module) if isinstance(node, ast.ImportFrom) else node.names[0].name
    if origin.split(".")[0] in ("spectrim", "__future__"):
        return {}
    if isinstance(node, ast.Import):
        return {(a.asname or a.name).split(".")[0]: ast.unparse(node) for a in node.names}
    return {
        alias.asname or alias.name: ast.unparse(
            ast.ImportFrom(node.module, [alias], node.level)
        )
        for alias in node.names
    }


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _text(source: str, node: ast.stmt) -> str:
    dropped: set[int] = set().union(*map(_span, _dropped_methods(node)))
    lines = source.splitlines()
    return "\n".join(lines[i] for i in sorted(_span(node) - dropped)).rstrip()


def _dropped_methods(node: ast.stmt) -> Iterator[ast.stmt]:
    for part in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(part, ast.FunctionDef) and part.name in _NOT_FOR_INFERENCE:
            yield part


def _span(node: ast.stmt) -> set[int]:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return set(range(first - 1, node.end_lineno or first))


def _reachable(sources: dict[str, str]) -> set[str]:
    chosen: set[str] = set()
    wanted = set(ROOTS)
    while new := (wanted & set(sources)) - chosen:
        chosen |= new
        wanted = set().union(*(_names(sources[name]) for name in new))
    return chosen


def _names(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def _check_complete(code: str, kinds: list[str]) -> None:
    root = symtable.symtable(code, MODULE, "exec")
    bound = (s for s in root.get_symbols() if s.is_assigned() or s.is_imported())
    known = {symbol.get_name() for symbol in bound} | set(dir(builtins))
    if missing := _globals(root) - known:
        raise InputError(
            f"layers of type {', '.join(kinds)} cannot be exported with their own code: "
            f"{sorted(missing)} is defined in neither torch, transformers nor the type's file; "
            "use the dense export"
        )


def _globals(table: symtable.SymbolTable) -> set[str]:
    found = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return found.union(*(_globals(child) for child in table.get_children()))
