r"""Whether two mathematical answers are equal.

Markup and units come off, formulas.py reads the rest as a whole, and equality.py compares.
"""

from __future__ import annotations

import re

from grpo_core.rubric.sandbox.equality import same
from grpo_core.rubric.sandbox.formula_atoms import DEGREE, Node
from grpo_core.rubric.sandbox.formula_tokens import Malformed, Unread, Words, is_word
from grpo_core.rubric.sandbox.formulas import parse_formula
from grpo_core.tasks.markup import strip_markup
from grpo_core.tasks.numbers import parse_number, plain_signs
from grpo_core.tasks.units import UNIT, is_unit, unit_name

_DEGREE = re.compile(
    r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\degree\b"
)
_TEXT = r"\\(?:text|textrm|textit|mathrm|mbox|operatorname)\s*\{"
_PER_TEXT = re.compile(rf"\}}\s*/\s*{_TEXT}")
_TEXT_UNIT = re.compile(
    rf"(.*[^\s\\({{\[,=+*/^_-])(?:\s|\\[,;: ]|~)*{_TEXT}\s*\(?([^{{}}()]*?)\)?\s*\}}"
    r"\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?",
    re.S,
)
_PLAIN_UNIT = re.compile(rf"(.*[\d}})!])({UNIT.pattern})", re.S)
_MONEY = re.compile(r"([-+]?)\s*(?:\\?\$|([€£¥₹]))\s*(?=[-+.\d\\])")
_HAS_FUNCTION = re.compile(r"\\(?!d?frac|tfrac|pi|sqrt)[a-z]+|(?<!\\)\b[a-z]+")


def math_equal(given: str, right: str) -> float:
    """1.0 if two answers are mathematically equal, else 0.0.

    A unit counts only where both have one. What is no formula, or prose, is wrong beside a key that
    is one. Raises Unread if one of them cannot be read, or cannot be decided on.
    """
    try:
        key, key_unit = read(right)
    except Words:
        return 0.0  # the caller has compared the texts
    except Malformed as error:
        raise Unread(f"the right answer is not a formula: {error}") from None
    except Unread as error:
        raise Unread(f"of the right answer this was not read: {error}") from None
    try:
        value, unit = read(given)
    except (Words, Malformed):
        return 0.0
    except Unread as error:
        raise Unread(f"of the answer this was not read: {error}") from None
    try:
        is_same = same(value, key)
    except (RecursionError, ArithmeticError, TypeError, ValueError) as error:
        raise Unread(f"they cannot be compared ({type(error).__name__})") from None
    if unit and key_unit and unit != key_unit:
        if not is_same:
            raise Unread(f"units {unit} and {key_unit} are not converted")
        return 0.0
    return float(is_same)


def read(text: str) -> tuple[Node, str]:
    """The tree of an answer and its unit ("" for none). Raises as parse_formula does."""
    text, unit = _split_unit(_PER_TEXT.sub("/", _DEGREE.sub("°", plain_signs(strip_markup(text)))))
    if not unit and (money := _MONEY.match(text)):
        text, unit = money[1] + text[money.end() :], money[2] or "$"
    try:
        node = parse_formula(strip_markup(text))
    except Unread:
        if (number := parse_number(text)) is None:  # such as 1 1/2
            raise
        node = ("num", number, 0)
    if not unit and (turned := _without_degree(node)) is not None:
        return turned, "°"
    return node, unit


def _without_degree(node: Node) -> Node | None:
    """30 of 30°, and x = 30 of x = 30°; None for others."""
    if node[0] == "*" and node[2] == DEGREE:
        return node[1]
    if node[0] == "rel" and (last := _without_degree(node[1][-1])) is not None:
        return ("rel", (*node[1][:-1], last), node[2])
    return None


def _split_unit(text: str) -> tuple[str, str]:
    if match := _TEXT_UNIT.fullmatch(text):
        head, unit = match[1], match[2].strip()
        if head.endswith("°") and unit in ("C", "F"):
            return head[:-1], f"°{unit}"
        is_variable = len(unit) == 1 and not re.fullmatch(r"[-+\d.,\s]+", head)
        if is_unit(unit) and not is_variable:
            return head, unit_name(unit + (match[3] or ""))
    elif (match := _PLAIN_UNIT.fullmatch(text)) and is_unit(unit := match[2]):
        head, words = match[1], re.findall("[A-Za-z]+", unit)
        is_glued = unit[0] != " "
        is_degree = unit.startswith("°")
        if not (is_degree and _HAS_FUNCTION.search(head)) and all(
            is_degree or is_word(w) or (len(w) < 3 and not (is_glued and len(w) == 1))
            for w in words
        ):
            return head, unit_name(unit)
    return text, ""
