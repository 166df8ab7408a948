"""Thin long curves without losing a spike. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from operator import itemgetter
from typing import TypeVar

Row = TypeVar("Row")


def min_max(rows: Sequence[Row], values: Sequence[float | None], limit: int) -> list[Row]:
    """The rows with the lowest and highest value of each stretch, and the first and last row.

    At most `limit` rows, in order. A stretch without values keeps its first row, so that a gap
    stays a gap. Fewer rows than the limit are all kept.
    """
    if len(rows) <= limit:
        return list(rows)
    stretches = max(1, (limit - 2) // 2)
    keep = {0, len(rows) - 1}
    for n in range(stretches):
        span = range(n * len(rows) // stretches, (n + 1) * len(rows) // stretches)
        known = [(v, i) for i in span if (v := values[i]) is not None and isfinite(v)]
        if known:
            keep.add(min(known, key=itemgetter(0))[1])
            keep.add(max(known, key=itemgetter(0))[1])
        else:
            keep.add(span[0])
    return [rows[i] for i in sorted(keep)]


def stride(first: int, last: int, max_points: int) -> int:
    """The smallest power of two that leaves at most `max_points` steps, `last` included.

    Anchored at the first step and doubling: as a run grows, drawn points are dropped but never
    move.
    """
    every, span = 1, last - first
    while span // every + 1 + (span % every > 0) > max(2, max_points):
        every *= 2
    return every
