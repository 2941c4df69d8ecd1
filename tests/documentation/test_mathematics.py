"""Formulas of docstrings and pages are typeset, all of them, and say what their text says."""

from __future__ import annotations

import html
import inspect
import re
import unicodedata

import pytest

from spectrim.pipeline.catalog import REGISTRIES
from tests.documentation.pages import WRITTEN

pytest.importorskip("latex2mathml", reason="needs latex2mathml, of the extra 'docs'")

EXAMPLES = {
    "min ||L_out^T (W - W_hat) L_in||_F": r"\min \Vert L_{\text{out}}^{\top} (W - \hat{W}) "
    r"L_{\text{in}}\Vert _{F}",
    "C_x (x) C_g": r"C_{x} \otimes C_{g}",
    "1/2 sum_{i,j>r} H_ij": r"\tfrac{1}{2} \sum _{i,j\gt r} H_{ij}",
    "left = L_out^{-T} U_r": r"\text{left} = L_{\text{out}}^{-\top} U_{r}",
    "d_v = e_v - e_hat_v": r"d_{v} = e_{v} - \hat{e}_{v}",
    "G = E[g x^T]": r"G = \mathbb{E}[g x^{\top}]",
    "||E||_2 = eps": r"\Vert E\Vert _{2} = \varepsilon ",
    "sqrt(2 xi) X^T": r"\sqrt{2 \xi } X^{\top}",
    "diag(sqrt g_i)": r"\text{diag}(\sqrt{g_{i}})",
    "U' S' V'^T": r"U^{\prime } S^{\prime } V^{\prime \top}",
    "log p(x_t | x_<t)": r"\log p(x_{t} | x_{\lt t})",
    "Y = M^-1/2 X^p M^-1/2": r"Y = M^{-1/2} X^{p} M^{-1/2}",
    "t the least that meets the budget": r"t\ \text{the least that meets the budget}",
    "MNN = sum of the D largest": r"\text{MNN} = \text{sum of the}\ D\ \text{largest}",
    "f_l(x_l + e)": "f_{l}(x_{l} + e)",
}
NAMES = ("svd_llm", "method_options.damping=0.01", "spectrim ls", "<|endoftext|>", "norm=1")


def formulas() -> dict[str, str]:
    """By where they stand, all formulas of the modules of all registries."""
    from mathematics import is_formula

    found = {}
    for kind, registry in REGISTRIES.items():
        for name in registry.names():
            doc = inspect.cleandoc(registry.get(name).__doc__ or "")
            blocks = re.findall(r"(?m)^    +(.+)$", doc)
            spans = re.findall(r"`([^`]*)`", re.sub(r"(?m)^    .*$", "", doc))
            texts = [*blocks, *(" ".join(s.split()) for s in spans if is_formula(s))]
            found |= {f"{kind}/{name}: {text}": text for text in texts}
    return found


def read(mathml: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", mathml))


@pytest.mark.parametrize(("text", "made"), EXAMPLES.items())
def test_a_formula_becomes_latex(text, made):
    from mathematics import latex

    assert re.sub(" +", " ", latex(text)) == made


@pytest.mark.parametrize("name", NAMES)
def test_names_and_commands_are_no_formulas(name):
    from mathematics import is_formula

    assert not is_formula(name)


_NAMES = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "theta",
    "mu",
    "nu",
    "xi",
    "pi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "eta",
    "zeta",
    "Gamma",
    "Theta",
    "Sigma",
    "Phi",
]

_SIGNS = (
    r"\^-?T\b|\{-T\}",
    r" \(x\)(?= |\))",
    r"_hat(?![a-z])",
    r"(?<![A-Za-z])(?:sqrt|sum)(?![A-Za-z])",
    r" in (?=\w+\})",  # a set
    r"(?<=[a-z]{3} )x(?= [a-z]{4})",  # a product
)


def letters(text: str) -> str:
    return "".join(re.findall(r"[^\W_]", unicodedata.normalize("NFKC", text)))


def said(text: str) -> str:
    """Return letters and digits of a formula to be seen, without what becomes a sign:
    transposition, products, accents, roots and sums."""
    from mathematics import GREEK

    for sign in _SIGNS:
        text = re.sub(sign, " ", text)
    names = "|".join(GREEK)
    return letters(
        re.sub(rf"(?<![A-Za-z])(d?)({names})(?![A-Za-z])", lambda m: m[1] + SIGNS[m[2]], text)
    )


SIGNS = {
    name: unicodedata.lookup(f"GREEK {case} LETTER {word}")
    for name, word, case in (
        *((n, n.upper(), "SMALL" if n.islower() else "CAPITAL") for n in _NAMES),
        ("eps", "EPSILON", "SMALL"),
        ("lam", "LAMDA", "SMALL"),
    )
}


def test_all_formulas_are_typeset_and_lose_nothing():
    """Every letter and digit is there, in its order; nothing of the notation is left."""
    from latex2mathml.converter import convert
    from mathematics import GREEK, latex

    assert set(SIGNS) == set(GREEK)
    found = formulas()
    assert len(found) > 150
    for where, text in found.items():
        shown = read(convert(latex(text)))
        assert "\\" not in shown, where
        assert "||" not in shown, where
        seen = iter(letters(shown))
        assert all(each in seen for each in said(text)), (where, said(text), letters(shown))


def test_brackets_stay_balanced():
    from mathematics import latex

    for where, text in formulas().items():
        made = latex(text)
        assert made.count("{") == made.count("}"), where
        for left, right in ("()", "[]"):
            kept = made.count(left) - made.count(right)
            assert kept == text.count(left) - text.count(right), where


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_formulas_of_pages_are_readable(page):
    from latex2mathml.converter import convert

    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    assert text.count("$$") % 2 == 0
    blocks = re.findall(r"\$\$(.+?)\$\$", text, re.S)
    for formula in (*blocks, *re.findall(r"\$([^$]+)\$", re.sub(r"(?s)\$\$.+?\$\$", "", text))):
        assert formula.count("{") == formula.count("}"), formula
        assert "\\" not in read(convert(formula)), formula


def test_a_page_gets_mathml_in_place_of_latex():
    from mathematics import with_mathml

    made = with_mathml(r'<p><span class="arithmatex">\(a \lt b\)</span></p>')
    assert made.startswith('<p><span class="equation"><math')
    assert "&#x0003C;" in made
    assert "arithmatex" not in made
