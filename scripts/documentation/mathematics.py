"""Formulas: from docstrings to LaTeX, and from LaTeX to MathML when pages are built."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from latex2mathml.converter import convert

LONG = 24
"""Symbols of a formula in a line of text that may be wider than a phone."""
_GREEK = (
    "alpha beta gamma delta theta mu nu xi pi rho sigma tau phi eta zeta Gamma Theta Sigma Phi"
)
GREEK = {name: f"\\{name}" for name in _GREEK.split()} | {
    "eps": r"\varepsilon",
    "lam": r"\lambda",
}
FUNCTIONS = ("min", "max", "log", "exp", "det", "cos", "sin", "cosh", "sinh", "sum", "int")
SYMBOLS = {
    "||": r"\Vert ", "~=": r"\approx ", "<=": r"\le ", ">=": r"\ge ", "<-": r"\leftarrow ",
    "!=": r"\ne ", "->": r"\to ", "=>": r"\Rightarrow ", "<": r"\lt ", ">": r"\gt ",
    "*": r"\ast ", "~": r"\sim ", " . ": r"\cdot ", "{": r"\lbrace ", "}": r"\rbrace ",
    "...": r"\ldots ", "%": r"\%",
}  # fmt: skip
_NO_WORD = "|".join((*GREEK, *FUNCTIONS[:-2], "sqrt"))
_WORD = rf"(?:(?!(?:{_NO_WORD})\b)[a-z]{{2,}}|sum(?= (?:of|over)\b)|a(?= [a-z]{{4}}))"
_TOKEN = re.compile(
    r"(?P<product>(?<= )\(x\)(?= |\)))"
    r"|(?P<times>(?<=[a-z]{3} )x(?= [a-z]{4}))"
    r"|(?P<fraction>\d+/(?:\d+|[A-Za-z])(?!\w))"
    r"|(?P<number>\d+(?:\.\d+)?)"
    rf"|(?P<words>`[^`]+`|[a-z]{{3,}}_[a-z]{{3,}}|[A-Za-z]+(?:'s|-[A-Za-z]{{3,}})\b"
    rf"|their sum\b|{_WORD}(?: {_WORD})+(?![\w^(\['])|a(?= [a-z]{{4}})|sum(?= (?:of|over)\b))"
    r"|(?P<indexed>[a-z]\d(?!\w))"
    r"|(?P<name>[A-Za-z]+)"
    r"|(?P<space>\s+(?!\. )(?=\S))"
    r"|(?P<symbol> \. |\|\||~=|<=|>=|<-|->|=>|!=|\.\.\.|\S)"
)
_SCRIPT = re.compile(
    r"_hat(?![a-z])|[_^](?=[{(])|[_^](?:-\d+(?:/\d+)?|[<+-]?\w[^\W_]*|\+)|'(?!s )"
)
_EXPECTATION = re.compile(r"(?:_\w+|_\{[^}]*\})? ?[\[|]")
_OPERATOR = re.compile(r"\^|\|\||E\[| (?:[=+/-]|<-|<=|~=|->|\(x\)|~) |\bsum\b")
_FACTOR = re.compile(rf"(?:[A-Za-z]|{'|'.join(GREEK)})(?:_\w+)?'?")
_SHORT_WORDS = ("in", "up", "or")
_VARIABLE = re.compile(r"(?<![A-Za-z])[a-z]{3,}_[a-z]{3,}(?![a-z])")


def is_formula(code: str) -> bool:
    """Tell a formula in backticks from a name: it has an operator, or multiplies symbols.

    What names a variable of the code, as in `lora_alpha = r`, is code.
    """
    if _VARIABLE.search(code):
        return False
    factors = code.split()
    product = len(factors) > 1 and all(_FACTOR.fullmatch(each) for each in factors)
    return product or bool(_OPERATOR.search(code))


def latex(text: str, inside_script: bool = False) -> str:
    """Return a formula of a docstring in LaTeX, like `sum_{i>r} s_i^2` or `C_x (x) C_g`.

    Words stay words; two spaces or more are a gap.
    """
    return _Formula(text, inside_script).latex()


@dataclass
class _Formula:
    text: str
    inside_script: bool
    place: int = 0
    made: list[str] = field(default_factory=list)

    def latex(self) -> str:
        while self.place < len(self.text):
            match = _TOKEN.match(self.text, self.place)
            if match is None:  # a space at the end
                break
            self.place = match.end()
            kind = str(match.lastgroup)
            base = getattr(self, f"_{kind}")(match.group())
            self.made.append(base if kind == "space" else self._with_scripts(base))
        return "".join(self.made)

    def _product(self, token: str) -> str:
        return r"\otimes "

    def _times(self, token: str) -> str:
        return r"\times "

    def _indexed(self, token: str) -> str:
        return f"{token[0]}_{token[1]}"

    def _fraction(self, token: str) -> str:
        if self.inside_script:
            return token
        return r"\tfrac{{{}}}{{{}}}".format(*token.split("/"))

    def _number(self, token: str) -> str:
        return token

    def _words(self, token: str) -> str:
        return rf"\text{{{token.strip('`')}}}"

    def _symbol(self, token: str) -> str:
        return SYMBOLS.get(token, token)

    def _space(self, token: str) -> str:
        """A gap, what separates two words, or nothing, as between the factors of a product."""
        if len(token) > 1:
            return r"\quad "
        before, after = self.text[: self.place - 1], self.text[self.place :]
        touches = re.search(r"[\w)\]|'`]$", before) and re.match(r"[\w(\[|`]", after)
        words = re.search(r"\w+$", before), re.match(r"(?:a )?[^\W_]+", after)
        if self.inside_script and any(w and w.group() == "in" for w in words):
            return " "
        return r"\ " if touches and any(w and _is_word(w.group()) for w in words) else " "

    def _name(self, token: str) -> str:
        rest = self.text[self.place :]
        if token == "sqrt":
            return rf"\sqrt{{{latex(self._bracketed().strip())}}}"
        in_norm = self.text[: self.place - 1].endswith("|")
        if token == "E" and _EXPECTATION.match(rest) and not in_norm:
            return r"\mathbb{E}"
        if token in FUNCTIONS:
            return f"\\{token} "
        if token in GREEK:
            return f"{GREEK[token]} "
        if token[0] == "d" and (token[1:] in GREEK or re.fullmatch("d[A-Z]", token)):
            return rf"\text{{d}}{GREEK.get(token[1:], token[1:])} "
        if self.inside_script and token == "in" and " " in self.text.strip():
            return r"\in "
        indices = self.inside_script and len(token) == 2 and token not in _SHORT_WORDS
        if len(token) == 1 or indices:
            return token
        return rf"\text{{{token}}}"

    def _bracketed(self) -> str:
        """Read to the bracket that closes the one here, or one name after a space."""
        start = self.place
        if name := re.match(r" \w+", self.text[start:]):
            self.place += name.end()
            return name.group()
        depth = 0
        while depth or self.place == start:
            depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(self.text[self.place], 0)
            self.place += 1
        return self.text[start + 1 : self.place - 1]

    def _with_scripts(self, base: str) -> str:
        below, above = "", ""
        while match := _SCRIPT.match(self.text, self.place):
            self.place = match.end()
            mark, script = match.group()[0], match.group()[1:]
            if mark == "'":
                above += r"\prime "
            elif script == "hat":
                base = rf"\hat{{{base}}}"
            elif mark == "_":
                below += latex(script or self._bracketed(), inside_script=True)
            else:
                above += _superscript(script or self._bracketed())
        parts = (base, below and f"_{{{below}}}", above and f"^{{{above}}}")
        return "".join(parts)


def _superscript(script: str) -> str:
    transposed = re.fullmatch("(-?)T", script)
    return rf"{transposed[1]}\top" if transposed else latex(script, inside_script=True)


def _is_word(name: str) -> bool:
    head = name.split()[-1].partition("_")[0]
    return len(head) > 1 and head not in (*GREEK, *FUNCTIONS, "sqrt") and head.isalpha()


_MADE = re.compile(
    r'<(?P<tag>div|span) class="arithmatex">\\[\[(](?P<latex>.*?)\\[\])]</(?P=tag)>', re.S
)


def with_mathml(page: str) -> str:
    """Put MathML in place of the LaTeX that `pymdownx.arithmatex` has marked in a page."""
    return _MADE.sub(_mathml, page)


def _mathml(match: re.Match[str]) -> str:
    block = match["tag"] == "div"
    text = html.unescape(match["latex"]).strip().replace(r"\sim ", "\u223c ")
    made = convert(text, display="block" if block else "inline")
    size = len(re.sub(r"<[^>]*>|\s", "", html.unescape(made)))
    kind = "equation" if block or size < LONG else "equation long"
    return f'<{match["tag"]} class="{kind}">{made}</{match["tag"]}>'


def displayed(lines: list[str]) -> Iterator[str]:
    """Each line of an indented block as an equation; what hangs in by more is a gap."""
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    for line in lines:
        gap = r"\qquad " if line[margin] == " " else ""
        yield f"$$\n{gap}{latex(line.strip())}\n$$"
