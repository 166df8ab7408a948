"""The tokens of a formula: numbers, letters, commands, signs; and the tables of their names."""

from __future__ import annotations

import re
from typing import NamedTuple

from grpo_core.tasks.numbers import plain, plain_signs

MAX_CHARACTERS = 1_000


class Unread(Exception):
    """The formula holds something that this reader does not know; the text names it."""


class Malformed(Exception):
    """The text is no formula: a bracket is not closed, an operand is missing."""


class Words(Exception):
    """The text is prose."""


class Token(NamedTuple):
    """kind: number, vulgar, letter, text, command, env, sign or end. spaced: after white space."""

    kind: str
    text: str
    spaced: bool


RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    "≤": "<=",
    "≥": ">=",
    "\\le": "<=",
    "\\leq": "<=",
    "\\leqslant": "<=",
    "\\lt": "<",
    "\\ge": ">=",
    "\\geq": ">=",
    "\\geqslant": ">=",
    "\\gt": ">",
    "<=": "<=",
    ">=": ">=",
    "\\ne": "!=",
    "\\neq": "!=",
    "≠": "!=",
    "!=": "!=",
    "\\in": "in",
    "∈": "in",
}
_SAME_NAME = "sin cos tan cot sec csc sinh cosh tanh ln log exp gcd lcm max min asin acos atan"
FUNCTIONS = {f"\\{name}": name for name in _SAME_NAME.split()} | {
    "\\arcsin": "asin",
    "\\arccos": "acos",
    "\\arctan": "atan",
    "\\arcsinh": "asinh",
    "\\arccosh": "acosh",
    "\\arctanh": "atanh",
    "\\lg": "log",
}
_GREEK = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu
nu xi rho sigma tau upsilon phi varphi chi psi omega Delta Theta Lambda Xi Sigma Phi Psi Omega ell
hbar"""
GREEK = frozenset(f"\\{name}" for name in _GREEK.split())
_ACCENTS = "vec hat bar overline tilde widetilde widehat dot overrightarrow"
ACCENTS = frozenset(f"\\{name}" for name in _ACCENTS.split())
_PLAIN = {name[1:]: name for name in (*FUNCTIONS, "\\sqrt", "\\pi", "\\binom")} | {
    "inf": "\\infty",
    "infinity": "\\infty",
    "theta": "\\theta",
    "alpha": "\\alpha",
    "beta": "\\beta",
}
_ALIASES = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cfrac": "\\frac",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
    "\\lbrack": "[",
    "\\rbrack": "]",
    "\\ast": "*",
    "\\bullet": "\\cdot",
    "∪": "\\cup",
    "∩": "\\cap",
    "∖": "\\setminus",
    "\\lparen": "(",
    "\\rparen": ")",
}
_SMALL = "no on is if to of at in it as an am we be by do go me my so up us"
_SMALL_WORDS = frozenset(_SMALL.split())
_TOKEN = re.compile(
    r"(?P<space>\s+|\\[,;:!> ]|~|\\q?quad(?![A-Za-z])|\\(?:left|right|displaystyle|textstyle|limits"
    r"|[bB]igg?[lr]?)(?![A-Za-z]))"
    r"|(?P<number>\d*\.\d*\\(?:overline|bar)\s*\{\d+\}"
    r"|(?:\d+(?:\.\d+)?|\.\d+)[eE][+-]?\d{1,3}(?![\dA-Za-z])|\d+\.\d+|\.\d+|\d+)"
    r"|(?P<text>\\(?:text|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mathsf|mbox"
    r"|boldsymbol|bm|operatorname\*?)\s*\{[^{}]*\})"
    r"|(?P<env>\\(?:begin|end)\s*\{\w+\*?\}(?:\{[lcr|]*\})?)"
    r"|(?P<command>\\[A-Za-z]+|\\[^A-Za-z])"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<vulgar>[¼½¾⅐-⅞])"
    r"|(?P<sign>\*\*|<=|>=|!=|.)",
    re.S,
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\\[,;! ]|~| |\{,\})\d{3})+(?!\d)")


def tokens_of(text: str) -> list[Token]:
    """The tokens of a formula. Raises Words for prose, Unread for a text that is too long."""
    if len(text) > MAX_CHARACTERS:
        raise Unread("it is too long")
    text = plain_signs(text)
    text = _SPACED_THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    if not re.search(r"[(\[{]", text):  # inside brackets a comma separates
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    tokens: list[Token] = []
    spaced = False
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup or "", match[0]
        if kind == "space":
            spaced = True
            continue
        if kind == "word":
            tokens += _letters(found, spaced)
        elif kind == "text":
            tokens += _text(found, spaced)
        elif kind == "vulgar":
            tokens.append(Token(kind, plain(found).strip(), spaced))
        elif found in ("\\$", "$"):
            raise Unread("a sign of money")
        else:
            tokens.append(Token(kind, _ALIASES.get(found, found), spaced))
        spaced = False
    return tokens


def _letters(run: str, spaced: bool) -> list[Token]:
    """The tokens of letters without a command. Raises Words for a word."""
    if run in ("and", "or"):
        return [Token("sign", ",", spaced)]
    if run in _PLAIN:
        return [Token("command", _PLAIN[run], spaced)]
    if run[:-1] in _PLAIN and f"\\{run[:-1]}" in FUNCTIONS:  # sinx
        return [Token("command", _PLAIN[run[:-1]], spaced), Token("letter", run[-1], False)]
    if is_word(run):
        raise Words
    return [Token("letter", char, spaced and i == 0) for i, char in enumerate(run)]


def is_word(run: str) -> bool:
    """Whether letters are a word, not a product of variables such as xy or abc."""
    lower = run.lower()
    return (
        lower in _SMALL_WORDS
        or len(run) > 4
        or (len(run) > 2 and re.search("[aeiou]", lower) is not None and not set(run) <= set("abc"))
    )


def _text(found: str, spaced: bool) -> list[Token]:
    r"""The tokens of \text{…}: a letter, a function, or the "or" of a list."""
    inside = found[found.index("{") + 1 : -1].strip()
    if inside in ("and", "or", ", and", ", or"):
        return [Token("sign", ",", spaced)]
    if f"\\{inside}" in FUNCTIONS:
        return [Token("command", f"\\{inside}", spaced)]
    if len(inside) == 1 and inside.isalpha():
        return [Token("text", inside, spaced)]
    if not inside:
        return []
    raise Words if inside.replace(" ", "").isalpha() else Unread(found)
