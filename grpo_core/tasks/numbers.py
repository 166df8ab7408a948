r"""The one reader of numbers: in keys, in answers, and for the last number of a text.

It reads, exactly, what people, LaTeX and other scripts write:

    5  +5  −5  .5  5.  1,234.5  1 000 000  1'000  1_000  1.234,5  ٥  ５    signs and separators
    3/4  ⅔  1 1/2  1½  \frac{3}{4}  -\dfrac12                              fractions
    1e-4  2.5 × 10^4  2.5 \times 10^{4}  10²  2^10                         powers
    50 %  50\%  5 ‰  5 percent  2 million  $5  €5  5 €                     scales and money

A comma groups thousands, and a point begins the decimals; 1.234,5 has no such reading, so it is
1234.5, but 1,5 could be two numbers and is not read. Nor are 1.2.3, 3:4, dates, 0x1F and 5k.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

from grpo_core.tasks.markup import strip_markup
from grpo_core.tasks.units import changes_value, is_unit, unit_name

MAX_NUMBER_CHARACTERS = 130
MAX_DIGITS = 400  # of a value, before or after the point
_MINUS = "\u2212\u2010\u2011\u2012\u2013\ufe63"
_TIMES = "×⋅·✕∙"
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_SUPERSCRIPT = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_VULGAR = re.compile(r"(\d ?)?([¼½¾⅐-⅞↉])")
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_FRAC = re.compile(
    r"(\d\s*)?\\[dtc]?frac\s*(?:\{\s*([+-]?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([+-]?[\d.,]+)\s*\}|(\d))"
)
_LATEX = (
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[,;: ]|(?<!\\)~|\\quad\b"), " "),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\^\s*\{?\\(?:circ|degree)\}?|\\degree\b"), "°"),
    (re.compile(r"\\([%$#])"), r"\1"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])"), ""),
    (re.compile(r"\\pi(?![A-Za-z])"), "π"),
    (re.compile(r"\\(?:pm|mp)(?![A-Za-z])"), "±"),
)
_GROUPED = "|".join(rf"\d{{1,3}}(?:{sign}\d{{3}}(?!\d))++" for sign in (",", " ", "'", "_"))
_DECIMAL = rf"(?:(?:{_GROUPED}|\d++)(?:\.\d*+)?|\.\d++)"
_EUROPEAN = r"\d{1,3}(?:(?:\.\d{3}(?!\d))++|(?: \d{3}(?!\d))++|(?:'\d{3}(?!\d))++),\d++(?![.,]\d)"
_CURRENCY = r"(?:(?:US|CA|AU|A|C|R|HK|NZ)?[$€£¥₹₽₩₪₫₿]|(?:USD|EUR|GBP|INR|Rs\.?)(?= ?\d))"
_SCALES = {
    "%": Fraction(1, 100),
    "‰": Fraction(1, 1000),
    "percent": Fraction(1, 100),
    "per cent": Fraction(1, 100),
    "pct": Fraction(1, 100),
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "dozen": Fraction(12),
}
_EXPONENT = r"\s?(?:\^|\*\*)\s?(?:\{\s?([+-]?\d{1,4})\s?\}|\(([+-]?\d{1,4})\)|([+-]?\d{1,4}))"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]\ ?)?(?P<money>{_CURRENCY}\ ?)?(?P<inner_sign>[+-])?"
    r"(?:(?P<odd>0[xXbBoO][0-9A-Fa-f]++|\d{4}-\d{1,2}-\d{1,2}(?!\d)|\d{1,2}-\d{1,2}-\d{4}(?!\d))"
    r"|(?P<whole>\d++)\ (?P<above>\d++)\ ?/\ ?(?P<below>\d++)(?!\ ?[/.,]\ ?\d)"
    rf"|(?P<european>{_EUROPEAN})"
    rf"|(?P<value>{_DECIMAL})(?:[eE](?P<e>[+-]?\d{{1,4}}+)"
    rf"|\ ?[×xX*]\ ?10{_EXPONENT}|{_EXPONENT})?"
    rf"(?:\ ?/\ ?(?P<divisor>[+-]?{_DECIMAL}))?)"
    r"(?P<tail>(?:[.,:/'_]?\d++)++)?"
    rf"(?P<scale>\ ?(?i:{'|'.join(_SCALES)})(?![A-Za-z]))?"
    rf"(?P<money_after>\ ?[$€£¥₹₽₩₪₫₿])?"
)
_NAMED = re.compile(r"\A\s*(?:[A-Za-z][A-Za-z0-9_{}\\ ]{0,30}(?:\([A-Za-z]\))? ?)?[=≈] ?")
_NAME_BEFORE = re.compile(r"[A-Za-z_\\]$")
_LINE_BEFORE = re.compile(r"(?:^|\n)[ \t]*\(?$")
_ITEM_AFTER = re.compile(r"\)?[ \t]+\S")
# A variable with an operator (x+, 2x -), an exponent, a root, or the argument of a function.
_FORMULA_BEFORE = re.compile(
    r"(?:(?<![A-Za-z])[A-Za-zα-ω](?:\^[({]?-?\d{1,4}[)}]?)? ?[-+/*×^] ?|\} ?[-+/*×] ?"
    r"|\d[A-Za-z]{1,3} ?[-+/*×] ?|-\("
    r"|[\^_√±∓{] ?[-+]? ?"
    r"|\^\(|[A-Za-zα-ω]\([-+]?|\|[-+]|--)$"
)
_MINUS_WORD = re.compile(r"(?i:\bnegative|(?<![\d)] )\bminus) $")
_FORMULA_AFTER = re.compile(
    r" ?[√π∞^±]| ?\\(?![)\]\\])| ?×|\*[A-Za-z(\\]|\}"
    r"| ?[-+] ?[b-hj-zB-HJ-Zα-ω](?![A-Za-z])| ?/ ?[a-zA-Zα-ω](?<![smhglL])(?![A-Za-z])|[α-ωΑ-Ω]"
)


def plain(text: str) -> str:
    """The text with one sign for each meaning: ASCII digits, -, ×, ^, spaces; simple LaTeX read."""
    text = _VULGAR.sub(lambda m: (m[1].rstrip() + " " if m[1] else "") + _vulgar(m[2]), text)
    text = plain_signs(text)
    if "\\" in text or "{" in text or "~" in text:
        text = _FRAC.sub(_plain_fraction, text)
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text


def plain_signs(text: str) -> str:
    """The text with ASCII digits, one minus, one times, one kind of space, and ^(2) for ²."""
    text = _SUPERSCRIPT.sub(lambda m: "^(" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + ")", text)
    return _FOREIGN.sub(lambda m: _plain_character(m[0]), text)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@lru_cache(maxsize=4096)
def _plain_character(char: str) -> str:
    if char in _MINUS:
        return "-"
    if char in _TIMES:
        return "×"
    if char in "\u2044\u2215÷":
        return "/"
    if char in "’ʼ":
        return "'"
    if 0xFF01 <= ord(char) <= 0xFF5E:  # full width
        return chr(ord(char) - 0xFEE0)
    if (digit := unicodedata.decimal(char, None)) is not None:
        return str(digit)
    if unicodedata.category(char) == "Zs":
        return " "
    return {"٫": ".", "٬": ",", "٪": "%"}.get(char, char)


@lru_cache(maxsize=64)
def _vulgar(char: str) -> str:
    value = Fraction(unicodedata.numeric(char)).limit_denominator(10)
    return f"{value.numerator}/{value.denominator}"


def _plain_fraction(match: re.Match[str]) -> str:
    before, above, below = match[1], match[2] or match[3], match[4] or match[5]
    if below.startswith("-"):  # the sign moves to the front
        below = below[1:]
        above = above[1:] if above.startswith("-") else f"-{above}"
    return f"{before.rstrip()} {above}/{below}" if before else f"{above}/{below}"


def parse_number(text: str) -> Fraction | None:
    """The number that a text states, exactly; None if it states none, or not a finite one.

    The whole text must be one number, apart from markup. See the top of the module for the forms.
    """
    quantity = parse_money(text)
    return None if quantity is None else quantity[0]


def parse_money(text: str) -> tuple[Fraction, str] | None:
    """The number of a text and its currency ("" for none); None where parse_number gives None."""
    return _money(text) if len(text) <= 4 * MAX_NUMBER_CHARACTERS else None


@lru_cache(maxsize=1024)  # the completions of a prompt share its answer, and often their own
def _money(text: str) -> tuple[Fraction, str] | None:
    text = _one_line(plain(strip_markup(text)))
    if text[:1] == "(" and text[-1:] == ")" and "," not in text and not re.search(_CURRENCY, text):
        text = text[1:-1].strip()  # ($5) is minus 5 in accounts; (1,234) is two numbers
    if len(text) > MAX_NUMBER_CHARACTERS or not (match := _NUMBER.fullmatch(text)):
        return None
    value = _value(match)
    money = (match["money"] or match["money_after"] or "").strip().rstrip(".")
    return None if value is None else (value, money)


def parse_quantity(text: str) -> tuple[Fraction, str] | None:
    """The number of a text and its unit or currency ("" for none): "5 km", "x = 5", "$5".

    None if the text says more than that: "5 or 6", "not 5", "5x", "5 squared".
    """
    if (number := parse_money(text)) is not None or len(text) > 4 * MAX_NUMBER_CHARACTERS:
        return number
    text = _one_line(_NAMED.sub("", plain(strip_markup(text)), count=1)).rstrip(".")
    if (number := parse_money(text)) is not None:
        return number
    match = _NUMBER.match(text)
    if len(text) > MAX_NUMBER_CHARACTERS or not match or match["money"]:
        return None
    value, unit = _value(match), text[match.end() :]
    return (value, unit_name(unit)) if value is not None and is_unit(unit) else None


def last_number(text: str) -> Fraction | None:
    """The last number of a text; None if there is none, or if it is only a part of something.

    A minus between two numbers, or after a word, is no sign: 3-5, GPT-4. The parts of 1.2.3, 3:4,
    25π, 2x+3, x^2 and 5k are no numbers. Names such as H2O and the numbering of a list are skipped.
    """
    text = plain(text)
    last: re.Match[str] | None = None
    items = 0
    for match in _NUMBER.finditer(text):
        before = text[max(0, match.start() - 20) : match.start()]
        if not match["sign"] and _NAME_BEFORE.search(before):
            continue
        if _LINE_BEFORE.search(before) and _is_item(text, match, items + 1):
            items += 1
            continue
        last = match
    return None if last is None else _in_context(text, last)


def _is_item(text: str, match: re.Match[str], number: int) -> bool:
    """Whether a number at the start of a line is item `number` of a list: "2. foo", "2) foo"."""
    is_closed = match["value"] == f"{number}." or (
        match["value"] == str(number) and text.startswith(")", match.end())
    )
    return is_closed and _ITEM_AFTER.match(text, match.end()) is not None


def _in_context(text: str, match: re.Match[str]) -> Fraction | None:
    """The value of a match of _NUMBER inside a text; None if it is part of a formula."""
    sign = match["sign"] or ""
    before = text[max(0, match.start() - 20) : match.start()]
    after = text[match.end() : match.end() + 40]
    value = _value(match)
    if value is None or _FORMULA_BEFORE.search(before + sign):
        return None
    if _FORMULA_AFTER.match(after) or (
        "." in match[0].rstrip(".") and after.startswith(("..", "…"))
    ):
        return None
    word = None if match["scale"] else re.match(r" ?([A-Za-z]+)", after)
    if word and (changes_value(word[1]) or (after[0] != " " and not is_unit(word[1]))):
        return None
    if _MINUS_WORD.search(before):
        return -value if not sign else None
    return -value if sign.startswith("-") and not _is_sign(before, sign) else value


def _is_sign(before: str, sign: str) -> bool:
    """Whether a minus before a number is its sign, not a subtraction, a hyphen or a bullet."""
    previous = before.rstrip(" ")[-1:]
    if sign.endswith(" "):
        return bool(previous) and previous in "=≈<>≤≥("
    if before.endswith(" "):
        return not (previous.isdigit() or previous in (")", "%"))
    return not (previous.isalnum() or previous in tuple(")]}%°"))


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a match of _NUMBER, its signs included; None if it is no number."""
    is_money = match["money"] and match["money_after"] and match[0].count("$") != 2  # $5$ is LaTeX
    signs = ((match["sign"] or "") + (match["inner_sign"] or "")).replace(" ", "")
    if match["odd"] or match["tail"] or len(signs) > 1 or is_money:
        return None
    try:
        value = _unsigned(match)
    except (ValueError, ZeroDivisionError):
        return None
    if value is None:
        return None
    if scale := match["scale"]:
        value *= _SCALES[scale.strip().lower()]
    if max(_digits(value.numerator), _digits(value.denominator)) > MAX_DIGITS:
        return None
    return -value if signs == "-" else value


def _unsigned(match: re.Match[str]) -> Fraction | None:
    if match["whole"]:
        above, below = int(match["above"]), int(match["below"])
        return int(match["whole"]) + Fraction(above, below) if above < below else None
    if match["european"]:
        groups, _, decimals = match["european"].rpartition(",")
        return Fraction(re.sub(r"\D", "", groups) + "." + decimals)
    value = _decimal(match["value"])
    times, power = match[_TIMES_TEN] or match[_TIMES_TEN + 1] or match[_TIMES_TEN + 2], match["e"]
    if exponent := times or power:
        if abs(int(exponent)) >= MAX_DIGITS:
            return None
        value *= Fraction(10) ** int(exponent)
    elif exponent := match[_POWER] or match[_POWER + 1] or match[_POWER + 2]:
        size = max(_digits(value.numerator), _digits(value.denominator))
        if size * abs(int(exponent)) > 2 * MAX_DIGITS or (value == 0 and int(exponent) <= 0):
            return None
        value **= int(exponent)
    if match["divisor"]:
        value /= _decimal(match["divisor"])
    return value


_TIMES_TEN = _NUMBER.groupindex["e"] + 1
_POWER = _TIMES_TEN + 3


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub("[, '_]", "", text).rstrip(".") if text != "." else "x")


def _digits(number: int) -> int:
    return number.bit_length() * 3 // 10
