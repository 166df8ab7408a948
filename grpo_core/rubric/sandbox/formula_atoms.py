"""The smallest parts of a formula: numbers, letters, brackets, roots, functions, matrices."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any, NamedTuple

from grpo_core.rubric.sandbox.formula_tokens import (
    ACCENTS,
    FUNCTIONS,
    GREEK,
    Malformed,
    Token,
    Unread,
)

Node = tuple[Any, ...]  # its kinds are listed in formulas.py

END = Token("end", "", False)
_CLOSERS = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle", "{": "}"}
_AROUND = {
    "|": ("|", "abs"),
    "\\lvert": ("\\rvert", "abs"),
    "\\vert": ("\\vert", "abs"),
    "\\lfloor": ("\\rfloor", "floor"),
    "\\lceil": ("\\rceil", "ceil"),
}
_MATRICES = ("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array")
_CALLED = frozenset("fghFGH")  # f(x) is a value of a function; x(x+1) is a product
DEGREE: Node = ("sym", "°")


class _Power(NamedTuple):
    """What stands between a function and its argument: \\sin^2, \\log_2."""

    exponent: Node | None
    base: Node | None


class Atoms(ABC):
    """Recursive descent over the tokens; `at` is the next one. formulas.py has the larger parts."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else END

    def take(self) -> Token:
        token = self.next
        self.at += 1
        return token

    def is_next(self, *texts: str) -> bool:
        return self.next.kind != "end" and self.next.text in texts

    def expect(self, text: str) -> None:
        if self.take().text != text:
            raise Malformed(f"{text or 'its end'} is missing")

    def peek(self, *texts: str) -> bool:
        return tuple(t.text for t in self.tokens[self.at : self.at + len(texts)]) == texts

    @abstractmethod
    def items(self, closing: str, kind: str) -> Node: ...

    @abstractmethod
    def sum(self) -> Node: ...

    @abstractmethod
    def power(self) -> Node: ...

    @abstractmethod
    def exponent(self) -> Node: ...

    @abstractmethod
    def starts_factor(self) -> bool: ...

    @abstractmethod
    def times(self, left: Node) -> Node: ...

    def postfix(self) -> Node:
        node = self.atom()
        while self.is_next("!", "%", "\\%", "°", "\\degree"):
            sign = self.take().text
            if sign == "!" and self.is_next("!"):
                self.take()
                node = ("!!", scalar(node))
            elif sign == "!":
                node = ("!", scalar(node))
            elif sign in ("%", "\\%"):
                node = ("/", scalar(node), ("num", Fraction(100), 0))
            else:
                node = ("*", scalar(node), DEGREE)
        return node

    def atom(self) -> Node:
        token = self.take()
        kind, text, _ = token
        if kind == "end":
            raise Malformed("it ends too early")
        if kind == "number":
            return self.number(text)
        if kind == "vulgar":
            above, _, below = text.partition("/")
            return ("/", ("num", Fraction(int(above)), 0), ("num", Fraction(int(below)), 0))
        if kind in ("letter", "text"):
            return self.letter(text)
        if kind == "env":
            return self.matrix(text)
        if text in _CLOSERS:
            return self.bracket(text)
        if text in _AROUND:
            closing, name = _AROUND[text]
            inside = scalar(self.sum())
            self.expect(closing)
            return ("fn", name, inside)
        return self.command(text)

    def number(self, text: str) -> Node:
        if self.is_next("_"):
            self.take()
            return _in_base(text, self.argument())
        repeating = re.fullmatch(r"(\d*)\.(\d*)\\\w+\s*\{(\d+)\}", text)
        if repeating:
            whole, fixed, cycle = repeating.groups()
            value = Fraction(int(cycle), 10 ** len(fixed) * (10 ** len(cycle) - 1))
            return ("num", value + Fraction(f"{whole or 0}.{fixed or 0}"), 0)
        if len(text) > 400:
            raise Unread("a number of more than 400 digits")
        return ("num", Fraction(text), len(text.partition(".")[2]) if "e" not in text else 0)

    def letter(self, name: str) -> Node:
        if self.is_next("_"):
            self.take()
            name += "_" + self.raw()
        if self.is_next("'", "\\prime"):
            raise Unread("a prime")
        if name in _CALLED and self.is_next("("):
            self.take()
            inside = self.items(")", "list")
            self.expect(")")
            return ("fn", f"call {name}", *_arguments(inside))
        return ("const", name) if name in ("e", "i") else ("sym", name)

    def raw(self) -> str:
        """The text of a subscript: one token, or all up to the closing brace."""
        if not self.is_next("{"):
            return self.take().text
        self.take()
        depth, text = 1, ""
        while depth:
            token = self.take()
            if token.kind == "end":
                raise Malformed("a subscript is not closed")
            depth += (token.text == "{") - (token.text == "}")
            text += token.text if depth else ""
        return text

    def bracket(self, opening: str) -> Node:
        closing = _CLOSERS[opening]
        is_set = opening == "\\{"
        inside = self.items(closing if is_set else END.text, "set" if is_set else "items")
        found = self.take().text
        if is_set or opening == "{":
            if found != closing:
                raise Malformed(f"{closing} is missing")
            if is_set:
                return inside if inside[0] == "set" else ("set", (inside,))
            return inside if inside[0] != "items" else ("set", inside[1])
        if found != closing and (found not in (")", "]") or opening not in ("(", "[")):
            raise Malformed(f"{closing} is missing")
        if inside[0] == "items":
            return ("seq", opening, inside[1], found)
        if found != closing:
            raise Malformed(f"{closing} is missing")
        return inside

    def argument(self) -> Node:
        """An argument in braces, or one digit, letter or command: \\frac12."""
        if self.is_next("{"):
            self.take()
            return scalar(self.bracket("{"))
        token = self.next
        if token.kind == "number" and len(token.text) > 1:
            if not token.text.isdigit():
                raise Unread("a decimal without braces")
            self.tokens[self.at] = Token("number", token.text[1:], False)
            return ("num", Fraction(int(token.text[0])), 0)
        if token.kind == "sign" and token.text != "(":
            raise Malformed("an argument is missing")
        return scalar(self.atom())

    def command(self, text: str) -> Node:
        if text == "\\frac":
            return ("/", self.argument(), self.argument())
        if text in ("\\binom", "\\dbinom", "\\tbinom"):
            return ("fn", "binom", self.argument(), self.argument())
        if text in ("\\sqrt", "√"):
            return self.root(text)
        if text in ("\\pi", "π"):
            return ("const", "pi")
        if text in ("\\infty", "∞"):
            return ("const", "inf")
        if text in ("\\emptyset", "\\varnothing", "∅"):
            return ("set", ())
        if text in ("\\mathbb", "\\mathbf") and self.is_next("{"):
            return ("named", self.raw())
        if text in ACCENTS:
            return ("sym", f"{text}{self.raw()}")
        if text in GREEK:
            return self.letter(text)
        if text in FUNCTIONS:
            return self.function(FUNCTIONS[text])
        if text.startswith("\\"):
            raise Unread(text)
        raise Malformed(f"{text} is in a wrong place")

    def root(self, text: str) -> Node:
        degree: Node = ("num", Fraction(2), 0)
        if self.is_next("["):
            self.take()
            degree = scalar(self.sum())
            self.expect("]")
        if text == "√" or self.is_next("("):
            inside = scalar(self.atom())
        elif self.next.kind == "number" and len(self.next.text) > 1:
            raise Unread("a root without braces")
        else:
            inside = self.argument()
        return ("^", inside, ("/", ("num", Fraction(1), 0), degree))

    def function(self, name: str) -> Node:
        power = self.between()
        if name in ("gcd", "lcm", "max", "min"):
            self.expect("(")
            inside = self.items(END.text, "list")
            self.expect(")")
            node: Node = ("fn", name, *_arguments(inside))
        else:
            argument = _radians(self.function_argument())
            inverse = power.exponent == ("neg", ("num", Fraction(1), 0))
            if inverse and name in ("sin", "cos", "tan", "sinh", "cosh", "tanh"):
                return ("fn", f"a{name}", argument)
            node = ("fn", name, argument)
            if name == "log":
                base = power.base or ("num", Fraction(10), 0)
                node = ("/", ("fn", "ln", argument), ("fn", "ln", base))
        return node if power.exponent is None else ("^", node, power.exponent)

    def between(self) -> _Power:
        exponent = base = None
        for _ in range(2):
            if self.is_next("^"):
                self.take()
                exponent = scalar(self.exponent())
            elif self.is_next("_"):
                self.take()
                base = self.argument()
        return _Power(exponent, base)

    def function_argument(self) -> Node:
        """A bracket, or a product without a sign up to the next function: \\sin 2x."""
        if self.is_next("(", "{", "["):
            return scalar(self.postfix())
        node = scalar(self.power())
        while self.starts_factor() and self.next.text not in FUNCTIONS and not self.is_next("("):
            node = self.times(node)
        return node

    def matrix(self, text: str) -> Node:
        name = re.sub(r".*\{(\w+)\*?\}.*", r"\1", text)
        if not text.startswith("\\begin") or name not in _MATRICES:
            raise Unread(name)
        rows: list[list[Node]] = [[]]
        while True:
            rows[-1].append(scalar(self.sum()))
            token = self.take()
            if token.text == "\\\\":
                if self.next.kind != "env":
                    rows.append([])
                    continue
                token = self.take()
            if token.kind == "env" and token.text.startswith("\\end"):
                break
            if token.text != "&":
                raise Malformed("a matrix is not closed")
        if len({len(row) for row in rows}) != 1 or name == "vmatrix":
            raise Unread("a determinant" if name == "vmatrix" else "rows of different length")
        return ("matrix", tuple(tuple(row) for row in rows))


def _radians(node: Node) -> Node:
    """The argument of a function, with 30° as a part of π."""
    if node == DEGREE:
        return ("/", ("const", "pi"), ("num", Fraction(180), 0))
    return tuple(_radians(p) if isinstance(p, tuple) and p else p for p in node)


def _arguments(node: Node) -> tuple[Node, ...]:
    """The arguments of a function, from what stands in its bracket."""
    return tuple(map(scalar, node[1] if node[0] == "list" else (node,)))


def scalar(node: Node) -> Node:
    """The node, which must be a number or an expression, not a set or a relation."""
    if node[0] in ("list", "set", "seq", "named", "rel", "cup", "cap", "setminus", "items"):
        raise Unread(f"a {node[0]} inside an expression")
    return node


def _in_base(digits: str, base: Node) -> Node:
    """101_2 is 5."""
    if base[0] != "num" or not digits.isalnum() or not 2 <= base[1] <= 36:
        raise Unread("a number with a subscript")
    try:
        return ("num", Fraction(int(digits, int(base[1]))), 0)
    except ValueError:
        raise Malformed("it has a digit that its base has not") from None
