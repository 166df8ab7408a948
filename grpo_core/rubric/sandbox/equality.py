"""Whether two formulas, as trees of formulas.py, are equal as values, sets, tuples or relations."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.rubric.sandbox.formula_atoms import Node
from grpo_core.rubric.sandbox.formula_tokens import Unread
from grpo_core.rubric.sandbox.formula_values import is_multiple, same_value, symbols

MAX_ITEMS = 60
INFINITY: Node = ("const", "inf")
REALS: Node = ("seq", "(", (("neg", INFINITY), INFINITY), ")")


def same(a: Node, b: Node) -> bool:
    """Whether two trees are equal as values, sets, tuples, intervals, relations or matrices.

    Raises Unread if that cannot be decided.
    """
    a, b = _unwrapped(a, b), _unwrapped(b, a)
    if a == b:
        return True
    if "rel" in (a[0], b[0]):
        return _same_relation(a, b)
    if a[0] in ("list", "set") or b[0] in ("list", "set"):
        return _same_collection(a, b)
    if "seq" in (a[0], b[0]):
        return (
            a[0] == b[0]
            and (a[1], a[3]) == (b[1], b[3])
            and len(a[2]) == len(b[2])
            and _same_in_order(a[2], b[2])
        )
    if a[0] in ("cup", "cap", "setminus") or b[0] in ("cup", "cap", "setminus"):
        return a[0] == b[0] and (
            (same(a[1], b[1]) and same(a[2], b[2]))
            if a[0] == "setminus"
            else _same_members(_flat(a), _flat(b))
        )
    if "named" in (a[0], b[0]):
        return a == b
    if "matrix" in (a[0], b[0]):
        return (
            a[0] == b[0]
            and [len(row) for row in a[1]] == [len(row) for row in b[1]]
            and all(map(_same_in_order, a[1], b[1]))
        )
    return same_value(a, b)


def _unwrapped(a: Node, other: Node) -> Node:
    """The tree as it can be compared with the other one: x = 5 is 5 beside a plain value."""
    a = _bare(a, other)
    return REALS if a == ("named", "R") else a


def _bare(a: Node, other: Node) -> Node:
    if a[0] == "list" and other[0] != "rel" and all(map(is_assignment, a[1])):
        names = {side[1][0] for side in a[1]}
        if len(names) == 1 and not (other[0] == "list" and any(map(is_assignment, other[1]))):
            a = ("list", tuple(side[1][1] for side in a[1]))
    if a[0] == "rel" and other[0] != "rel" and set(a[2]) == {"="}:
        value = a[1][-1]
        if is_assignment(a) or all(
            same(side, value) for side in a[1][1 if is_name(a[1][0]) else 0 : -1]
        ):
            return value
        if is_name(value) and len(a[1]) == 2:  # 5 = x
            return a[1][0]
    if a[0] == "rel" and other[0] in ("seq", "cup"):
        return _as_interval(a) or a
    if a[0] == "set" and len(a[1]) == 1 and other[0] not in ("set", "list", "rel"):
        return a[1][0]
    return a


def is_name(node: Node) -> bool:
    return node[0] == "sym" or (node[0] == "fn" and str(node[1]).startswith("call "))


def is_assignment(node: Node) -> bool:
    """Whether it is x = value or f(x) = value."""
    return node[0] == "rel" and node[2] == ("=",) and is_name(node[1][0])


def _as_interval(relation: Node) -> Node | None:
    """x > 3 or 1 < x < 2 as an interval; None for others."""
    sides: tuple[Node, ...] = relation[1]
    signs: tuple[str, ...] = relation[2]
    if len(sides) == 2 and is_name(sides[1]):
        sides, signs = sides[::-1], tuple(_FLIPPED.get(s, s) for s in signs)
    if len(sides) == 2 and is_name(sides[0]):
        if signs[0] in ("<", "<="):
            return ("seq", "(", (("neg", INFINITY), sides[1]), ")" if signs[0] == "<" else "]")
        if signs[0] in (">", ">="):
            return ("seq", "(" if signs[0] == ">" else "[", (sides[1], INFINITY), ")")
    if len(sides) == 3 and is_name(sides[1]):
        if signs[0] in (">", ">=") and signs[1] in (">", ">="):
            sides, signs = sides[::-1], tuple(_FLIPPED.get(s, s) for s in signs[::-1])
        if signs[0] in ("<", "<=") and signs[1] in ("<", "<="):
            opening, closing = "(" if signs[0] == "<" else "[", ")" if signs[1] == "<" else "]"
            return ("seq", opening, (sides[0], sides[2]), closing)
    return None


_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _same_relation(a: Node, b: Node) -> bool:
    """Whether two relations are the same, whichever side stands left.

    An equation may be multiplied by a number, but x = 5 is an answer and 2x = 10 a question.
    """
    if a[0] != "rel" or b[0] != "rel" or len(a[1]) != len(b[1]):
        return False
    if len(a[1]) > 2:
        flipped = ("rel", a[1][::-1], tuple(_FLIPPED.get(s, s) for s in a[2][::-1]))
        return any(x[2] == b[2] and _same_in_order(x[1], b[1]) for x in (a, flipped))
    (left, right), (sign,) = a[1], a[2]
    pairs = [(left, right, sign), (right, left, _FLIPPED.get(sign, sign))]
    (b_left, b_right), (b_sign,) = b[1], b[2]
    if any(s == b_sign and _same_in_order((x, y), b[1]) for x, y, s in pairs):
        return True
    if any(side[0] in _STRUCTURES for side in (*a[1], *b[1])):
        return False
    is_solved = any(
        is_name(x) and not symbols(y) for x, y in ((b_left, b_right), (b_right, b_left))
    )
    if is_solved:
        return False
    difference = ("+", b_left, ("neg", b_right))
    if b_sign in ("=", "!="):
        return sign == b_sign and is_multiple(("+", left, ("neg", right)), difference)
    return any(s == b_sign and same_value(("+", x, ("neg", y)), difference) for x, y, s in pairs)


_STRUCTURES = ("list", "set", "seq", "named", "rel", "cup", "cap", "setminus", "matrix")


def _same_in_order(a: Sequence[Node], b: Sequence[Node]) -> bool:
    """Whether each item equals the other's at its place, of two sequences of one length."""
    return all(map(same, a, b))


def _same_collection(a: Node, b: Node) -> bool:
    """Lists without brackets have no order, but beside (1, 2) they have. Sets have no order."""
    if "seq" in (a[0], b[0]):
        seq, other = (a, b) if a[0] == "seq" else (b, a)
        is_open = (seq[1], seq[3]) in (("(", ")"), ("\\langle", "\\rangle"))
        return (
            other[0] == "list"
            and (is_open or len(seq[2]) > 2)
            and len(seq[2]) == len(other[1])
            and _same_in_order(seq[2], other[1])
        )
    if {a[0], b[0]} <= {"list", "set"}:
        return (_same_in_any_order if a[0] == b[0] == "list" else _same_members)(a[1], b[1])
    return False


def _same_in_any_order(a: Sequence[Node], b: Sequence[Node]) -> bool:
    """Whether each item has one partner: 1, 1, 2 is not 1, 2, 2."""
    left = list(b)
    for x in a:
        partner = next((i for i, y in enumerate(left) if same(x, y)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def _same_members(a: Sequence[Node], b: Sequence[Node]) -> bool:
    if len(a) + len(b) > MAX_ITEMS:
        raise Unread(f"more than {MAX_ITEMS} items")
    return all(any(same(x, y) for y in b) for x in a) and all(any(same(x, y) for x in a) for y in b)


def _flat(node: Node) -> list[Node]:
    """The parts of a union of unions."""
    parts = []
    for part in node[1:]:
        parts += _flat(part) if part[0] == node[0] else [part]
    return parts
