"""Every command of README, docs and generated pages is one that spectrim takes."""

from __future__ import annotations

import re

import pytest

from spectrim.cli.options import check_text
from tests.documentation.pages import ROOT, WRITTEN, Command, commands, options
from tests.documentation.parsing import all_options, found, names_of, parse, words_of

pytestmark = pytest.mark.slow

LINES = [c for page in WRITTEN for c in commands(page.name, page.read_text(encoding="utf-8"))]
FOREIGN = {"--tensor-parallel-size", "--load-format", "--max-lora-rank"}
"""Options of other programs that the pages name."""


def test_commands_are_found():
    text = "```sh\nspectrim plan A \\\n  --data T  # b\n```\nand `spectrim ls`, `spectrimx`\n"
    lines = [(command.text, command.whole) for command in commands("page", text)]
    assert lines == [("spectrim plan A    --data T  # b", True), ("spectrim ls", False)]
    assert len(LINES) > 50


@pytest.mark.parametrize("line", ["spectrim plan", "spectrim plan A --wrong", "spectrim wrong"])
def test_a_wrong_command_is_refused(line):
    with pytest.raises((Exception, AssertionError), match=r"model|wrong"):
        parse(line)


@pytest.mark.parametrize("command", LINES, ids=lambda c: f"{c.page}: {c.text}")
def test_commands_parse(command: Command):
    if command.whole:
        recipe, model = parse(command.text), words_of(command.text)[1:2]
        if recipe is not None:
            check_text(recipe, *model)
        return
    inner, words = found(words_of(command.text))
    unknown = {w for w in words if w.startswith("-")} - names_of(inner)
    assert unknown <= {"--help"}, unknown


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)
def test_options_in_the_text_exist(page):
    scripts = "".join(f.read_text(encoding="utf-8") for f in ROOT.glob("[bs]*/*.py"))
    benchmarks = set(re.findall(r'"(--[\w-]+)"', scripts))
    known = all_options() | benchmarks | FOREIGN
    assert options(page.read_text(encoding="utf-8")) - known == set()


def test_commands_of_the_made_pages_parse():
    import method_pages
    import reference_pages

    made = method_pages.pages() | reference_pages.pages()
    lines = [c for page, text in made.items() for c in commands(page, text) if c.whole]
    assert len(lines) > 80
    for command in lines:
        if (recipe := parse(command.text)) is not None:
            check_text(recipe, "MODEL")
