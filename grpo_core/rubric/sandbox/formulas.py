r"""Reads a formula, as LaTeX or plain text, into a tree. All of it, or none.

The reader has no rule that skips anything but spaces and sizes of brackets, so that a formula that
was read only in part cannot be taken for another one. What it does not know raises Unread.

A tree is a tuple; its first item is the kind:

    ("num", Fraction, decimals)  ("sym", name)  ("const", "pi" | "e" | "i" | "inf")
    ("+" | "*" | "/" | "^", a, b)  ("neg", a)  ("!", a)  ("!!", a)  ("fn", name, *arguments)
    ("list", items)  ("set", items)  ("seq", opening, items, closing)  ("named", letter)
    ("rel", sides, signs)  ("cup" | "cap" | "setminus", a, b)  ("matrix", rows)
"""

from __future__ import annotations

from grpo_core.rubric.sandbox.formula_atoms import DEGREE, END, Atoms, Node, scalar
from grpo_core.rubric.sandbox.formula_tokens import (
    ACCENTS,
    FUNCTIONS,
    GREEK,
    RELATIONS,
    Malformed,
    Unread,
    tokens_of,
)

_OPERATORS = {"*": "*", "×": "*", "·": "*", "\\cdot": "*", "\\times": "*", "/": "/", "\\div": "/"}
_SET_SIGNS = {"\\cup": "cup", "\\cap": "cap", "\\setminus": "setminus", "\\backslash": "setminus"}


def parse_formula(text: str) -> Node:
    """The tree of a whole formula.

    Raises Words for prose, Malformed for what is no formula, Unread for what is not understood.
    """
    try:
        parser = _Parser(tokens_of(text))
        node = parser.items(END.text, "list")
        parser.expect("")
    except RecursionError:
        raise Malformed("it is nested too deeply") from None
    return node


class _Parser(Atoms):
    """From a list of formulas down to a power; each method reads one level of the grammar."""

    def items(self, closing: str, kind: str) -> Node:
        """Formulas with commas between them, up to the closing sign; one formula is itself."""
        if self.next.text == closing and closing:
            return (kind, ())
        items = [self.relation()]
        while self.is_next(",", ";"):
            self.take()
            items.append(self.relation())
        # x = 3, 4 gives x two values.
        if (
            len(items) > 1
            and _is_assignment(items[0])
            and not any(i[0] == "rel" for i in items[1:])
        ):
            items[0] = items[0][1][1]
        return items[0] if len(items) == 1 else (kind, tuple(items))

    def relation(self) -> Node:
        sides, signs = [self.union()], []
        while self.next.text in RELATIONS:
            signs.append(RELATIONS[self.take().text])
            sides.append(self.union())
        if not signs:
            return sides[0]
        if signs == ["in"]:
            return ("rel", (sides[0], sides[1]), ("=",))
        return ("rel", tuple(sides), tuple(signs))

    def union(self) -> Node:
        node = self.ratio()
        while self.next.text in _SET_SIGNS:
            node = (_SET_SIGNS[self.take().text], node, self.ratio())
        return node

    def ratio(self) -> Node:
        node = self.sum()
        if self.is_next(":"):
            self.take()
            node = ("/", scalar(node), scalar(self.sum()))
        return node

    def sum(self) -> Node:
        if self.is_next("+"):
            self.take()
        if self.is_next("±", "\\pm"):
            self.take()
            node = scalar(self.product())
            return ("list", (node, ("neg", node)))
        node = self.product()
        while self.is_next("+", "-", "±", "\\pm"):
            sign, right = self.take().text, scalar(self.product())
            if sign in ("±", "\\pm"):
                if self.is_next("+", "-", "±", "\\pm"):
                    raise Unread("a sum after ±")
                return ("list", (("+", scalar(node), right), ("+", node, ("neg", right))))
            node = ("+", scalar(node), right if sign == "+" else ("neg", right))
        return node

    def product(self) -> Node:
        node, after_slash = self.factor(), False
        while True:
            if self.next.text in _OPERATORS:
                sign = _OPERATORS[self.take().text]
                node = (sign, scalar(node), scalar(self.factor()))
                after_slash = sign == "/"
            elif self.starts_factor():
                if after_slash:
                    raise Unread("a product after /, as in 1/2x")
                node = self.times(node)
            else:
                return node

    def starts_factor(self) -> bool:
        """Whether the next token begins a factor of a product without a sign."""
        kind, text, _ = self.next
        if kind in ("number", "letter", "text", "vulgar"):
            return True
        if kind == "sign":
            return text in ("(", "{", "[", "√")
        return kind == "command" and (
            text in FUNCTIONS
            or text in GREEK
            or text in ACCENTS
            or text in ("\\frac", "\\sqrt", "\\binom", "\\pi", "\\infty", "\\lfloor", "\\lceil")
            or text in ("\\lvert", "\\{")
        )

    def times(self, left: Node) -> Node:
        """A product without a sign. A whole number before a fraction is a mixed number."""
        start = self.next
        is_apart = start.spaced and left[0] not in ("num", "/")
        if start.kind == "number" and not is_apart and left[0] != "!":
            raise Unread("two numbers beside each other")
        right = self.factor()
        if left[0] == "num" and start.kind in ("command", "vulgar") and _is_fraction(right):
            if left[2] or right[1][1] >= right[2][1]:
                raise Unread("a number before an improper fraction")
            return ("+", left, right)
        return ("*", scalar(left), scalar(right))

    def factor(self) -> Node:
        if self.is_next("-"):
            self.take()
            return ("neg", scalar(self.factor()))
        return self.power()

    def power(self) -> Node:
        base = self.postfix()
        if self.is_next("^", "**"):
            self.take()
            if self.is_next("\\circ", "\\degree") or self.peek("{", "\\circ", "}"):
                while self.take().text not in ("\\circ", "\\degree"):
                    pass
                if self.is_next("}"):
                    self.take()
                return ("*", scalar(base), DEGREE)
            if base[0] == "matrix":
                raise Unread("a power of a matrix")
            base = ("^", scalar(base), scalar(self.exponent()))
            if self.is_next("!"):
                raise Unread("a factorial after a power")
        return base

    def exponent(self) -> Node:
        if self.is_next("-"):
            self.take()
            return ("neg", scalar(self.exponent()))
        if self.is_next("+"):
            self.take()
        node = self.postfix()
        if self.is_next("^", "**"):
            self.take()
            return ("^", scalar(node), scalar(self.exponent()))
        return node


def _is_assignment(node: Node) -> bool:
    return node[0] == "rel" and node[2] == ("=",) and node[1][0][0] == "sym"


def _is_fraction(node: Node) -> bool:
    return node[0] == "/" and node[1][0] == node[2][0] == "num" and not node[1][2] + node[2][2]
