"""Extract the short answer of a worked-out one, and compare two of them."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])(?:\.[0-9]++)?|[0-9]++(?:\.[0-9]++)?|\.[0-9]++"
_MONEY = "$£€"
_MARKED = re.compile(rf"####[\s{_MONEY}]*+([-\u2212]?+)[{_MONEY}]*+({_DIGITS})")
_ANYWHERE = re.compile(rf"(?:(?<![\w)\]}}])([-\u2212])[{_MONEY}]?)?({_DIGITS})")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*+")

_DROPPED = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|qquad|quad)(?![a-zA-Z])"
    r"|(?<!\\)\\[!,;: ]|\^\{?\\circ\}?|\\degree(?![a-zA-Z])|\\?[$%]|[°~]"
)
_WORDS = r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|mathit)\s*+\{([^{}]*+)\}"
_UNIT_WORDS = re.compile(rf"(?<=\S)\s*+(?!\\math(?:bf|it)){_WORDS}(?:\^\{{?[0-9]\}}?)?$")
_PLAIN_UNIT = re.compile(
    r"^([-+]?(?:[0-9][0-9,]*+(?:\.[0-9]++)?|\.[0-9]++|[0-9]++/[0-9]++))"
    r" +(?:[a-zA-Z]{2,}+(?: |$|(?=\^)))++(?:\^\{?[23]\}?)?$"
)
_PART = r"(\{[^{}]*+\}|[0-9a-zA-Z]|\\[a-zA-Z]++)"
_FRACTION = re.compile(rf"\\[dtc]?frac\s*+{_PART}\s*+{_PART}")
_ROOT = re.compile(r"\\sqrt\s*+([0-9a-zA-Z])")
_NAMED = re.compile(r"^[a-zA-Z](?:_\w|_\{\w+\})?\s*=\s*(?=\S)")
_THOUSANDS = re.compile(r"^[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?$")
_QUOTIENT = re.compile(r"^([-+]?)(?:\\frac\{([^{}]*)\}\{([^{}]*)\}|([^/{}]+)/([^/{}]+))$")
_DECIMAL = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)$")
_LONGEST_NUMBER = 1000
"""Characters; longer runs of digits are compared as text."""


def extract_gsm8k(text: str) -> str | None:
    """Return the first number after `####`, without commas and currency, or None."""
    found = _MARKED.search(text)
    return _number(found) if found else None


def extract_number(text: str) -> str | None:
    """Return the last number anywhere in the text, without commas, or None."""
    found = list(_ANYWHERE.finditer(text))
    return _number(found[-1]) if found else None


def extract_math(text: str) -> str | None:
    """Return the content of the last closed `\\boxed{...}` or `\\fbox{...}`, or None.

    `\\boxed 3` without braces holds what stands up to the next blank or `$`.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    rest = text[boxes[-1].end() :]
    if rest.startswith("{"):
        return _braced(rest)
    bare = re.match(r"[^\s$]+", rest)
    return bare[0].rstrip(".") or None if bare else None


def same_answer(a: str | None, b: str | None) -> bool:
    """Return whether both are answers, and equal as numbers or as normalized LaTeX."""
    if a is None or b is None:
        return False
    left, right = normalize_answer(a), normalize_answer(b)
    if not left or not right:
        return bool(a.strip()) and a.strip() == b.strip()
    if left == right:
        return True
    numbers = _value(left), _value(right)
    return numbers[0] is not None and numbers[0] == numbers[1]


def normalize_answer(text: str) -> str:
    """Return one spelling for answers that differ only in LaTeX.

    Left out: blanks, `\\left` and `\\right`, `$`, `%`, degrees, units, a closing full stop,
    `x =` before the value, commas between thousands. `\\dfrac`, `\\frac12`, `1/2` become
    `\\frac{1}{2}`, `\\sqrt2` becomes `\\sqrt{2}`, `\\text{A}` becomes `A`.
    """
    result = " ".join(text.replace("\u2212", "-").replace("{,}", ",").split())
    result = _DROPPED.sub("", result).strip().rstrip(".").rstrip()
    result = _UNIT_WORDS.sub("", _NAMED.sub("", result)).strip()
    result = _PLAIN_UNIT.sub(r"\1", result)
    result = re.sub(_WORDS, r"\1", result)
    result = _FRACTION.sub(_as_fraction, result)
    result = _ROOT.sub(r"\\sqrt{\1}", result)
    result = "".join(result.split())
    if _THOUSANDS.match(result):
        result = result.replace(",", "")
    return re.sub(r"^([-+]?[0-9]+)/([0-9]+)$", r"\\frac{\1}{\2}", result)


def _number(found: re.Match[str]) -> str:
    sign = "-" if found[1] else ""
    return sign + found[2].replace(",", "")


def _braced(text: str) -> str | None:
    """Return the content of the braces that open `text`, or None if they are not closed."""
    depth, skip = 0, False
    for position, character in enumerate(text):
        if skip or character == "\\":
            skip = not skip
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[1:position].strip() or None
    return None


def _as_fraction(found: re.Match[str]) -> str:
    above, below = (part.removeprefix("{").removesuffix("}") for part in found.groups())
    return f"\\frac{{{above}}}{{{below}}}"


def _value(text: str) -> Fraction | None:
    """Return the number in `text`, a decimal or one quotient of decimals."""
    if len(text) > _LONGEST_NUMBER:
        return None
    if _DECIMAL.match(text):
        return Fraction(text)
    quotient = _QUOTIENT.match(text)
    if quotient is None:
        return None
    sign, *parts = quotient.groups()
    above, below = (part for part in parts if part is not None)
    if not (_DECIMAL.match(above) and _DECIMAL.match(below)) or not Fraction(below):
        return None
    value = Fraction(above) / Fraction(below)
    return -value if sign == "-" else value
