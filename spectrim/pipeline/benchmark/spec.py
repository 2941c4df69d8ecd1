"""Recipes by short names: a preset, METHOD/ALLOCATION/LAYER, or a YAML file.

    PRESET[+REFINEMENT...]                          `svd_llm`, `d_rank`, `default`, ...
    METHOD[/ALLOCATION[/LAYER]][+REFINEMENT...]     the base recipe fills what is left out
    FILE.yaml                                       a recipe, or a mapping: name -> its fields

The name of a paper is the preset of its published combination. The base recipe gives every
preset and recipe file its calibration, task and budget; a named mapping may set calibration
fields of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from spectrim.decompositions import DECOMPOSITIONS
from spectrim.errors import InputError, UnknownNameError
from spectrim.pipeline.presets import PRESETS, unknown_preset
from spectrim.pipeline.recipe import Recipe, recipe_from
from spectrim.pipeline.renamed import PRESETS as RENAMED_PRESETS
from spectrim.runtime.files import is_file, read_mapping

_FILES = (".yaml", ".yml", ".json")
_PARTS = ("method", "allocation", "layer")
_OPTIONS_OF = {"method": "method_options", "allocation": "allocation_options"}
_ONES_OWN = ("calibration", "budget", "latency", "task")


def named_recipes(specs: Iterable[str], base: Recipe | None = None) -> dict[str, Recipe]:
    """Return the recipes of the specs, by name. Raises InputError."""
    found: dict[str, Recipe] = {}
    for spec in specs:
        for name, recipe in _recipes(spec.strip(), base or Recipe()):
            if name in found:
                raise InputError(f"'{name}' is named twice; each row needs a name of its own")
            found[name] = recipe
    if not found:
        raise InputError("no method is named; give --methods svd_llm,d_rank,default")
    return found


def _recipes(spec: str, base: Recipe) -> Iterator[tuple[str, Recipe]]:
    if spec.endswith(_FILES):
        yield from _from_file(Path(spec), base)
        return
    head, *refinements = spec.split("+")
    recipe = _preset(head, base) if head in PRESETS else _compact(head, spec, base)
    if refinements:
        given = [{"name": name} for name in refinements]
        recipe = recipe_from(recipe.to_dict() | {"refinement": given}, spec)
    yield (spec if head in PRESETS else _full_name(recipe)), recipe


def _compact(head: str, spec: str, base: Recipe) -> Recipe:
    parts = head.split("/")
    if len(parts) == 1 and head and head not in DECOMPOSITIONS.names():
        if head in RENAMED_PRESETS:
            raise unknown_preset(head)
        raise UnknownNameError("method or preset", head, {*PRESETS, *DECOMPOSITIONS.names()})
    if not all(parts) or len(parts) > len(_PARTS):
        raise InputError(
            f"--methods '{spec}': expected METHOD[/ALLOCATION[/LAYER]][+REFINEMENT...], "
            f"a preset (`spectrim recipes`), or a YAML file"
        )
    return _with(base, dict(zip(_PARTS, parts, strict=False)), spec)


def _preset(name: str, base: Recipe) -> Recipe:
    preset = PRESETS[name]
    return preset.with_changes(**{field: getattr(base, field) for field in _ONES_OWN})


def _full_name(recipe: Recipe) -> str:
    parts = [getattr(recipe, part) for part in _PARTS]
    return "+".join(["/".join(parts), *(step.name for step in recipe.refinement)])


def _from_file(path: Path, base: Recipe) -> Iterator[tuple[str, Recipe]]:
    if not is_file(path):
        raise InputError(f"--methods {path}: no such file")
    values = read_mapping(path)
    if not isinstance(values, dict) or not values:
        raise InputError(f"{path} must hold a recipe, or a mapping from names to recipe fields")
    if values.keys() & {field.name for field in fields(Recipe)}:
        own = {key: value for key, value in values.items() if key not in _ONES_OWN}
        recipe = recipe_from(own, str(path))
        kept = {field: getattr(base, field) for field in _ONES_OWN}
        yield path.stem, recipe.with_changes(**kept)
        return
    for name, entry in values.items():
        place = f"{path}: {name}"
        if not isinstance(entry, dict):
            raise InputError(f"{place} must hold a mapping of recipe fields")
        if "budget" in entry:
            raise InputError(f"{place}: the budgets of all rows come from --budgets")
        yield str(name), _with(base, entry, place)


def _with(base: Recipe, changes: dict[str, Any], source: str) -> Recipe:
    """Replace fields of `base`, nested ones one by one; a new name resets its options."""
    values = base.to_dict()
    for part, options in _OPTIONS_OF.items():
        if changes.get(part, values[part]) != values[part]:
            values[options] = {}
    for name, change in changes.items():
        nested = isinstance(change, dict) and isinstance(values.get(name), dict)
        values[name] = values[name] | change if nested else change
    return recipe_from(values, source)
