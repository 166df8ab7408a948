"""Long curves with few points, and no spike lost. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TypeVar

Row = TypeVar("Row")


def min_max(rows: Sequence[Row], values: Sequence[float | None], limit: int) -> list[Row]:
    """The rows in which `values` is lowest and highest of each stretch, in order, with the first
    and the last row; at most `limit` of them.

    Where nothing is known in a stretch its first row stays, so that a gap stays a gap. Fewer rows
    than the limit are all kept.
    """
    if len(rows) <= limit:
        return list(rows)
    stretches = max(1, (limit - 2) // 2)
    keep = {0, len(rows) - 1}
    for n in range(stretches):
        span = range(n * len(rows) // stretches, (n + 1) * len(rows) // stretches)
        known = [i for i in span if (v := values[i]) is not None and isfinite(v)]
        keep |= (
            {min(known, key=values.__getitem__), max(known, key=values.__getitem__)}
            if known
            else {span[0]}
        )
    return [rows[i] for i in sorted(keep)]


def stride(first: int, last: int, max_points: int) -> int:
    """The smallest power of two such that every stride-th step from `first`, and `last`, are at
    most `max_points`.

    Anchored at the first step and doubling: as a run grows, drawn points are dropped or stay, but
    never move.
    """
    every, span = 1, last - first
    while span // every + 1 + (span % every > 0) > max(2, max_points):
        every *= 2
    return every
