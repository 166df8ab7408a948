"""Whether two expressions, as trees of formulas.py, have the same value.

Rational numbers are compared exactly. Other values are computed with so many digits that the
largest and the smallest number inside them cannot hide a difference. Expressions with variables are
compared at several points (Schwartz 1980: one that is not zero is zero at few of them).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from mpmath import mp

from grpo_core.rubric.sandbox.formula_atoms import DEGREE, Node
from grpo_core.rubric.sandbox.formula_tokens import Unread

MAX_BITS = 200_000  # of an exact number
MAX_DIGITS = 8_000  # of a computed one
SPARE_DIGITS = 50
ROUNDED = 6  # a decimal with this many places may be a rounded value
NUM_POINTS = 6

Values = Mapping[str, Any]


class Unequal(Exception):
    """A part has no value, so it is equal to nothing."""


def symbols(node: Any) -> frozenset[str]:
    """The names of the variables; the value of f(x) is a variable too."""
    if not isinstance(node, tuple) or not node:
        return frozenset()
    if node[0] == "sym":
        return frozenset({node[1]})
    if node[0] == "fn" and node[1].startswith("call "):
        return frozenset({repr(node)})
    return frozenset().union(*map(symbols, node))


def same_value(a: Node, b: Node) -> bool:
    """Whether two expressions are equal wherever both have a value."""
    names = sorted(symbols(a) | symbols(b))
    if any(node == DEGREE[1] for node in names):
        raise Unread("degrees inside an expression")
    if not names:
        x, y = exact(a), exact(b)
        if x is not None and y is not None and x == y:
            return True
        if _is_rounded(a, b, y) or _is_rounded(b, a, x):
            return True
        return (x is None or y is None) and bool(_agree(a, b, {}))
    rng = random.Random(0)
    tried = []
    for i in range(NUM_POINTS):
        sign = (1, 1, -1)[i % 3]
        # All positive, all negative or mixed: √x² is x only for one sign.
        point = {
            name: Fraction(rng.randint(200, 3000), 997) * (sign if i < 3 else rng.choice((1, -1)))
            for name in names
        }
        tried.append(_agree(a, b, point))
        if tried[-1] is False:
            return False
    if tried.count(True) < 2:
        raise Unread("it has no value at the points that were tried")
    return True


def is_multiple(a: Node, b: Node) -> bool:
    """Whether a is b times a number other than 0."""
    names = symbols(a)
    if not names or names != symbols(b):
        return False
    point = {name: mp.mpf(index + 2) / 7 for index, name in enumerate(sorted(names))}
    with mp.workdps(SPARE_DIGITS):
        try:
            factor = compute(a, point) / compute(b, point)
        except (ZeroDivisionError, ValueError, Unequal):
            return False
        if not mp.isfinite(factor) or mp.im(factor) or not factor:
            return False
        ratio = Fraction(str(mp.nstr(factor, 30))).limit_denominator(10**6)
    return ratio != 0 and same_value(a, ("*", ("num", ratio, 0), b))


def _is_rounded(a: Node, b: Node, exact_b: Fraction | None) -> bool:
    """Whether a is a decimal of at least ROUNDED places to which b, no decimal itself, rounds."""
    sign, number = (-1, a[1]) if a[0] == "neg" else (1, a)
    if number[0] != "num" or number[2] < ROUNDED:
        return False
    if exact_b is not None:
        below = exact_b.denominator
        while below % 2 == 0 or below % 5 == 0:
            below //= 2 if below % 2 == 0 else 5
        if below == 1:
            return False
    with mp.workdps(SPARE_DIGITS + number[2]):
        try:
            difference = abs(compute(b, {}) - sign * _number(number[1]))
        except (ZeroDivisionError, ValueError, Unequal):
            return False
        return bool(difference <= mp.mpf(10) ** -number[2] / 2)


def _agree(a: Node, b: Node, point: Mapping[str, Fraction]) -> bool | None:
    """Whether a = b at a point; None if one has no value there, or only one is real."""
    try:
        digits = SPARE_DIGITS + _digits_inside((a, b), point)
        differences = []
        for precision in (digits, digits + SPARE_DIGITS):
            with mp.workdps(precision):
                values = {name: _number(value) for name, value in point.items()}
                x, y = compute(a, values), compute(b, values)
                if point and bool(mp.im(x)) != bool(mp.im(y)):
                    return None
                if mp.isinf(x) or mp.isinf(y):
                    return bool(x == y)
                if mp.isnan(x) or mp.isnan(y):
                    return None
                differences.append(x - y)
    except (ZeroDivisionError, ValueError, Unequal):
        if point:
            return None
        return False
    except (OverflowError, MemoryError):
        raise Unread("its value is too large") from None
    first, second = differences
    # A true difference stays as it is with more digits; one by rounding changes wholly.
    return not (second and abs(first - second) < abs(second) * 1e-10)


def _digits_inside(nodes: Sequence[Node], point: Mapping[str, Fraction]) -> int:
    """Decimal digits between the largest or smallest number inside the formulas and 1."""
    most = 0
    with mp.workdps(15):
        values = {name: _number(value) for name, value in point.items()}

        def watch(value: Any) -> None:
            nonlocal most
            size = abs(value)
            if size and mp.isfinite(size):
                most = max(most, abs(int(mp.mag(size))) * 3 // 10)
            if most > MAX_DIGITS:
                raise Unread("a number in it is too large or too small")

        for node in nodes:
            compute(node, values, watch)
    return most


def _number(value: Fraction) -> Any:
    return mp.mpf(value.numerator) / value.denominator


def exact(node: Node) -> Fraction | None:
    """The value of an expression without variables if it is rational by its form; else None.

    Raises Unread for a number of more than MAX_BITS.
    """
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind in ("sym", "const"):
        return None
    if kind == "fn":
        return _exact_function(node)
    values = [exact(part) for part in node[1:]]
    if any(v is None for v in values):
        return None
    known: list[Fraction] = [v for v in values if v is not None]
    return _exact_operation(kind, known)


def _exact_operation(kind: str, values: list[Fraction]) -> Fraction | None:
    a, b = values[0], values[-1]
    if kind == "neg":
        return -a
    if kind == "+":
        return _bounded(a + b)
    if kind == "*":
        return _bounded(a * b)
    if kind == "/":
        return _bounded(a / b) if b else None
    if kind == "^":
        size = max(a.numerator.bit_length(), a.denominator.bit_length())
        if b.denominator != 1 or (a == 0 and b <= 0) or size * abs(b.numerator) > MAX_BITS:
            return None
        return a**b.numerator
    if kind == "!" and b.denominator == 1 and 0 <= b <= 5_000:
        return Fraction(math.factorial(b.numerator))
    if kind == "!!" and b.denominator == 1 and 0 <= b <= 5_000:
        return Fraction(math.prod(range(b.numerator, 0, -2)))
    return None


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Unread("a number in it is too large")
    return value


def _exact_function(node: Node) -> Fraction | None:
    values = [exact(part) for part in node[2:]]
    known = [v for v in values if v is not None]
    if len(known) != len(values) or node[1] not in _EXACT:
        return None
    try:
        return Fraction(_EXACT[node[1]](*known))
    except (ValueError, TypeError, OverflowError):
        return None


def _whole(value: Fraction) -> int:
    if value.denominator != 1:
        raise ValueError("no whole number")
    return value.numerator


def _binomial(n: Fraction, k: Fraction) -> int:
    if max(n, k) > 20_000:
        raise OverflowError
    return math.comb(_whole(n), _whole(k))


_EXACT: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "max": max,
    "min": min,
    "gcd": lambda *values: math.gcd(*map(_whole, values)),
    "lcm": lambda *values: math.lcm(*map(_whole, values)),
    "binom": _binomial,
}
_SAME_NAME = "sin cos tan cot sec csc sinh cosh tanh exp asin acos atan asinh acosh atanh"
_COMPUTED: dict[str, Callable[..., Any]] = {
    name: getattr(mp, name) for name in _SAME_NAME.split()
} | {
    "ln": mp.log,
    "abs": abs,
    "floor": mp.floor,
    "ceil": mp.ceil,
    "max": max,
    "min": min,
    "binom": mp.binomial,
}


def compute(node: Node, values: Values, watch: Callable[[Any], None] = lambda value: None) -> Any:
    """The value of an expression in mpmath's present precision.

    values: name -> value. watch: is shown the value of every part.
    Raises Unread for what has no rule here, ZeroDivisionError and ValueError where undefined.
    """
    value = _computed(node, values, watch)
    watch(value)
    return value


def _computed(node: Node, values: Values, watch: Callable[[Any], None]) -> Any:
    kind = node[0]
    if kind == "num":
        return _number(node[1])
    if kind == "sym":
        return values[node[1]]
    if kind == "const":
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1), "inf": mp.inf}[node[1]]
    if kind == "fn":
        return _computed_function(node, values, watch)
    parts = [compute(part, values, watch) for part in node[1:]]
    if kind == "neg":
        return -parts[0]
    if kind in ("+", "*", "/"):
        if any(mp.isinf(p) for p in parts):
            raise Unequal("a sum or product with infinity")
        a, b = parts
        return a + b if kind == "+" else a * b if kind == "*" else a / b
    if kind == "^":
        return _power(*parts)
    if kind in ("!", "!!"):
        if abs(parts[0]) > 20_000:
            raise Unread("a factorial that is too large")
        return mp.factorial(parts[0]) if kind == "!" else mp.fac2(parts[0])
    raise Unread(kind)


def _power(base: Any, exponent: Any) -> Any:
    if mp.isinf(base) or mp.isinf(exponent):
        raise Unequal("a power with infinity")
    if base and abs(exponent) * (abs(mp.mag(base)) + 1) > 4 * MAX_DIGITS:
        raise Unread("a power that is too large")
    return base**exponent


def _computed_function(node: Node, values: Values, watch: Callable[[Any], None]) -> Any:
    name = node[1]
    if name.startswith("call "):
        return values[repr(node)]
    if name in ("gcd", "lcm"):
        if (value := exact(node)) is None:
            raise Unread(name)
        return _number(value)
    if name not in _COMPUTED:
        raise Unread(name)
    parts = [compute(part, values, watch) for part in node[2:]]
    if any(mp.isinf(p) or abs(p) > 10**MAX_DIGITS for p in parts) or (
        name == "exp" and abs(parts[0]) > 2 * MAX_DIGITS
    ):
        raise Unread(f"{name} of a number that is too large")
    return _COMPUTED[name](*parts)
