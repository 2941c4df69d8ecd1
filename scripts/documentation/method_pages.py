"""One page for each name in a registry, from its module alone, and an index of them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml
from kinds import KINDS, Entry, entries
from text import ROOT, fields, options_text, place, prose_of_method, sources

from spectrim.pipeline.presets import PRESETS, SUMMARIES
from spectrim.registry import NoOptions

_HEADING = re.compile(r"(?m)^#{2,3} (.+)$")
_SELF = "../../"


def pages() -> dict[str, str]:
    """Markdown by its place under docs/."""
    made = {"methods/index.md": _index()}
    for kind in KINDS:
        made |= {entry.page: _page(entry) for entry in entries(kind)}
    return made | {f"methods/presets/{name}.md": _preset_page(name) for name in PRESETS}


def _index() -> str:
    parts = [
        "# Methods",
        "Everything that is chosen by name, with a page for each, generated from its source.",
    ]
    for kind, about in KINDS.items():
        lines = [
            f"- [`{entry.name}`](../{entry.page}): {_first_sentence(entry)}"
            for entry in entries(kind)
        ]
        parts += [f"## {about.title}", "\n".join(lines)]
    presets = [f"- [`{name}`](presets/{name}.md): {SUMMARIES[name]}" for name in PRESETS]
    return "\n\n".join([*parts, "## Presets", "\n".join(presets)]) + "\n"


def _first_sentence(entry: Entry) -> str:
    return prose_of_method(entry.registry.summary(entry.name))


def _page(entry: Entry) -> str:
    about = KINDS[entry.kind]
    parts = [f"# `{entry.name}`", f"*{about.title}*, `{place(entry.module)}`"]
    parts.append(prose_of_method(entry.module.__doc__))
    if reference := getattr(entry.module, "REFERENCE", ""):
        parts.append(f"**Source:** {sources(reference)}")
    parts += [*_needs(entry), *_options(entry), *_command(entry), *_used(entry)]
    if about.measured:
        parts += _results(*_called(entry))
    return "\n\n".join(parts) + "\n"


def _needs(entry: Entry) -> Iterator[str]:
    lines = [_statistic(name) for name in entry.needs]
    if getattr(entry.module, "NEEDS_GRADIENT", False):
        lines.append("- a backward pass")
    if getattr(entry.module, "NEEDS_ORIGINAL", False):
        lines.append("- the original model")
    if lines:
        yield "## Needs"
        yield "\n".join(lines)


def _statistic(name: str) -> str:
    known = {entry.name: entry.page for entry in entries("statistics")}
    return f"- [`{name}`]({_SELF}{known[name]})" if name in known else f"- `{name}`"


def _option_class(entry: Entry) -> type:
    return getattr(entry.module, "Options", NoOptions)


def _options(entry: Entry) -> Iterator[str]:
    options = _option_class(entry)
    if dataclasses.fields(options):
        yield "## Options"
        yield "\n".join(fields(options))
        if text := options_text(options):
            yield text


def commands(entry: Entry) -> list[str]:
    """The command lines that use it: as it is, and with its first option set."""
    about = KINDS[entry.kind]
    line = getattr(entry.module, "COMMAND", about.command).format(name=entry.name)
    if not line:
        return []
    setting = _setting(entry, about.setting)
    return [line, f"{line} {setting}"] if setting else [line]


def _setting(entry: Entry, form: str) -> str:
    for field in dataclasses.fields(_option_class(entry)) if form else ():
        if isinstance(field.default, bool | int | float | str):
            value = yaml.safe_dump(field.default).removesuffix("...\n").strip()
            return form.format(name=entry.name, option=field.name, value=shlex.quote(value))
    return ""


def _command(entry: Entry) -> Iterator[str]:
    if form := getattr(entry.module, "FORM", ""):
        yield "## What to type"
        yield f"`{form}`"
    if lines := commands(entry):
        yield "## Command"
        yield _shell(lines)


def _shell(lines: list[str]) -> str:
    return "```sh\n" + "\n".join(lines) + "\n```"


def _used(entry: Entry) -> Iterator[str]:
    users = []
    if entry.kind == "statistics":
        users = [
            f"- [`{other.name}`]({_SELF}{other.page})"
            for kind in KINDS
            for other in entries(kind)
            if entry.name in other.needs
        ]
    users += [
        f"- preset [`{name}`]({_SELF}methods/presets/{name}.md)"
        for name in _presets_with(entry)
    ]
    if users:
        yield "## Used by"
        yield "\n".join(users)


def _chosen(recipe: Any, kind: str) -> list[str]:
    selection = recipe.pruning
    return {
        "methods": [recipe.method],
        "allocations": [] if selection else [recipe.allocation],
        "layers": [recipe.layer],
        "refinements": [step.name for step in recipe.refinement],
        "importance": [selection.importance] if selection else [],
    }.get(kind, [])


def _called(entry: Entry) -> list[str]:
    """Its name, what a paper calls it (what the docstring says before its colon, where that is
    short), and the presets that are known for it."""
    title, colon, _ = entry.registry.summary(entry.name).partition(":")
    names = [entry.name, entry.name.replace("_", " "), entry.name.replace("_", "-")]
    if colon and len(title.split()) <= 3:
        names.append(title.partition(",")[0])
    if entry.kind in ("refinements", "importance"):
        names += _presets_with(entry)
    return names


def _presets_with(entry: Entry) -> list[str]:
    return [name for name, r in PRESETS.items() if entry.name in _chosen(r, entry.kind)]


@cache
def _sections() -> tuple[tuple[str, str, str], ...]:
    """Page of the site, heading and text of all that was measured."""
    found = []
    measured = ("results.md", "docs/results.md"), ("training.md", "docs/training.md")
    for page, file in (*measured, ("log.md", "LOG.md")):
        parts = _HEADING.split((ROOT / file).read_text(encoding="utf-8"))[1:]
        found += [(page, *pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return tuple(found)


def _results(*names: str) -> Iterator[str]:
    found = [
        f"- [{heading}]({_SELF}{page}#{slug(heading)})"
        for page, heading, body in _sections()
        if any(_mentions(body, name) for name in names)
    ]
    if found:
        yield "## Results"
        yield "\n".join(found)


def _mentions(body: str, name: str) -> bool:
    """In code, or as a word of a table: names like `block` are words of the prose too."""
    tables = "\n".join(line for line in body.splitlines() if line.startswith("|"))
    word = rf"(?i)(?<![\w-]){re.escape(name)}(?![\w-])"
    return f"`{name}`" in body or bool(re.search(word, tables))


def slug(heading: str) -> str:
    """The anchor of a heading, as both the site and repository hosts make it."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def _preset_page(name: str) -> str:
    recipe, plain = PRESETS[name].to_dict(), PRESETS["default"].to_dict()
    changed = {key: value for key, value in recipe.items() if value != plain[key]}
    shown = changed or {
        key: value for key, value in plain.items() if value not in (None, [], {})
    }
    lead = "What differs from `default`:" if changed else "All of it:"
    text = "--task TASK.jsonl" if PRESETS[name].pruning else "--data TEXT"
    verb = "quantize" if PRESETS[name].correction else "compress"
    lines = [
        f"spectrim {verb} MODEL -o OUT --recipe {name} {text}",
        f"spectrim recipes copy {name} -o mine.yaml",
    ]
    parts = [
        f"# `{name}`",
        "*Preset*, `spectrim/pipeline/presets.py`",
        SUMMARIES[name],
        lead,
        f"```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```",
        "## Command",
        _shell(lines),
        *_results(name),
    ]
    return "\n\n".join(parts) + "\n"
