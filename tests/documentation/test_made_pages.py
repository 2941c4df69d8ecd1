"""Every method has a page that says what it is, and everything public is in the reference."""

from __future__ import annotations

import importlib
import inspect

import pytest

from spectrim.pipeline.catalog import REGISTRIES
from spectrim.pipeline.presets import PRESETS, SUMMARIES

pytestmark = pytest.mark.slow

LONG = 10
"""Lines from which a public method has to say what it does."""


def test_every_name_has_a_page():
    import method_pages
    from kinds import KINDS

    assert set(KINDS) == set(REGISTRIES)
    expected = {f"methods/{k}/{n}.md" for k, r in REGISTRIES.items() for n in r.names()}
    expected |= {f"methods/presets/{name}.md" for name in PRESETS}
    assert set(method_pages.pages()) == expected | {"methods/index.md"}
    assert set(SUMMARIES) == set(PRESETS)


def test_a_page_has_equation_source_options_command_and_results():
    import method_pages

    page = method_pages.pages()["methods/methods/obd.md"]
    for part in (
        r"\min  \Vert L_{\text{out}}^{\top} (W - \hat{W}) L_{\text{in}}\Vert _{F}$",
        "[arXiv:2604.00821](https://arxiv.org/abs/2604.00821)",
        "[`gradient_covariance`](../../methods/statistics/gradient_covariance.md)",
        "`damping: float (ge=0, allow_inf_nan=False) = 0.001`",
        "spectrim compress MODEL -o OUT --data TEXT --method obd",
        " --set method_options.damping=0.001",
        "../../results.md#the-family-on-stories3m",
        "preset [`closed_form`]",
    ):
        assert part in page, part


@pytest.mark.parametrize("kind", ["methods", "allocations", "refinements", "importance"])
def test_what_is_measured_has_results(kind):
    import method_pages

    pages = method_pages.pages()
    without = {
        name
        for name in REGISTRIES[kind].names()
        if "## Results" not in pages[f"methods/{kind}/{name}.md"]
    }
    assert without <= {"bsi", "eora"}


def test_docstrings_say_more_than_one_line():
    """A page needs a summary and what is behind it: an equation, shapes or costs."""
    thin = []
    for kind in ("methods", "allocations", "layers", "refinements", "importance", "statistics"):
        for name in REGISTRIES[kind].names():
            if len((REGISTRIES[kind].get(name).__doc__ or "").split()) < 20:
                thin.append(f"{kind}/{name}")
    assert thin == []


def test_everything_public_is_in_the_reference_and_says_what_it_is():
    import reference_pages
    import text

    pages = reference_pages.pages()
    silent = []
    for package in reference_pages.packages():
        module = importlib.import_module(package)
        for name in module.__all__:
            assert f"## `{name}`\n" in pages[f"reference/{package}.md"]
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                said = text.own_docstring(thing)
            else:
                said = reference_pages.value_docstring(module, name)
            if not said:
                silent.append(f"{package}.{name}")
    assert silent == []


def test_long_public_methods_say_what_they_do():
    import reference_pages

    silent = []
    for package in reference_pages.packages():
        module = importlib.import_module(package)
        for cls in filter(inspect.isclass, (getattr(module, n) for n in module.__all__)):
            for name, function in vars(cls).items():
                if name.startswith("_") or not inspect.isfunction(function) or function.__doc__:
                    continue
                if len(inspect.getsource(function).splitlines()) > LONG:
                    silent.append(f"{package}.{cls.__name__}.{name}")
    assert silent == []


def test_prose_keeps_code_and_escapes_the_rest():
    import text

    given = "a *b <c> `*d <e>`\n    f *g\nh"
    assert text.prose(given) == "a \\*b \\<c> `*d <e>`\n\n    f *g\nh"
    assert text.prose("2 * 3 < 4") == "2 * 3 < 4"
