"""Points far from the rest of a curve: left out of the axis range, counted and reported. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ui.render.text import count, is_number, short

MIN_POINTS = 20  # a curve with fewer points has no outliers
TRIM = 0.05  # share of points at each end that the spread ignores
FAR = 4.0  # an outlier is at least this many spreads beyond the others


def fence(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Lowest and highest value that is not an outlier; None if there are no outliers.

    The spread is the range without TRIM of the points at each end. If it is 0 all other points
    are equal, and the odd one is worth seeing: None.
    """
    known = sorted(v for v in values if is_number(v))
    if len(known) < MIN_POINTS:
        return None
    trimmed = 1 + int(len(known) * TRIM)
    low, high = known[trimmed], known[-1 - trimmed]
    spread = high - low
    inside = [v for v in known if low - FAR * spread <= v <= high + FAR * spread]
    if spread <= 0 or len(inside) == len(known):
        return None
    return inside[0], inside[-1]


def marked(figure: dict[str, Any], thinned: bool) -> dict[str, Any]:
    """The figure with `clipped`: an axis range without outliers, and a sentence that counts them.

    thinned: the traces hold only part of the points, so the count is a lower bound.
    """
    axis = figure["layout"]["yaxis"]
    lines = [t for t in figure["traces"] if t.get("yaxis") != "y2" and t.get("hoverinfo") != "skip"]
    # Where a line is smoothed, count the measured values: the faint line behind it.
    raw = [t for t in lines if "opacity" in t]
    values = [v for t in raw or lines for v in t["y"] if is_number(v)]
    kept = fence(values)
    if kept is None or "range" in axis or axis.get("type") == "log":
        return figure
    low, high = kept
    above = sum(v > high for v in values)
    below = sum(v < low for v in values)
    sides = [
        f"{count(n, 'point')} {side} {short(bound)}"
        for n, side, bound in ((above, "above", high), (below, "below", low))
        if n
    ]
    at_least = "At least " if thinned else ""
    verb = "is" if above + below == 1 else "are"
    says = f"{at_least}{' and '.join(sides)} {verb} not drawn."
    margin = 0.05 * (high - low)
    bottom = 0 if axis.get("rangemode") == "tozero" and low >= 0 else low - margin
    return figure | {
        "clipped": {"says": says, "range": [bottom, high + margin]},
        "spoken": f"{figure['spoken']}. {says}",
    }
