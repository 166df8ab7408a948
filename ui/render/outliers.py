"""Points so far off that the rest of a curve could not be read: left out of the axis, counted, and said. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ui.render.text import count, is_number, short

ENOUGH = 20  # points of a curve; of fewer none is called far off
APART = 0.05  # of the points at each end do not say how far the others spread
FAR = 4.0  # spreads beyond the others


def fence(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Lowest and highest value that is drawn; None where nothing is far off, or where the others are all equal: then the odd one is the news."""
    known = sorted(v for v in values if is_number(v))
    if len(known) < ENOUGH:
        return None
    aside = 1 + int(len(known) * APART)
    low, high = known[aside], known[-1 - aside]
    spread = high - low
    inside = [v for v in known if low - FAR * spread <= v <= high + FAR * spread]
    return (inside[0], inside[-1]) if spread > 0 and len(inside) < len(known) else None


def marked(figure: dict[str, Any], thinned: bool) -> dict[str, Any]:
    """The figure with `clipped`: the range of its axis without what is far off, and the sentence that says how much that is.

    thinned: not every point is in the traces, so the count is a lower bound.
    """
    axis = figure["layout"]["yaxis"]
    lines = [t for t in figure["traces"] if t.get("yaxis") != "y2" and t.get("hoverinfo") != "skip"]
    values = [
        v for t in [t for t in lines if "opacity" in t] or lines for v in t["y"] if is_number(v)
    ]  # smoothed: what lies behind is what was measured
    kept = fence(values)
    if kept is None or "range" in axis or axis.get("type") == "log":
        return figure
    low, high = kept
    above, below = sum(v > high for v in values), sum(v < low for v in values)
    sides = [
        f"{count(n, 'point')} {side} {short(bound)}"
        for n, side, bound in ((above, "above", high), (below, "below", low))
        if n
    ]
    says = f"{'At least ' if thinned else ''}{' and '.join(sides)} {'is' if above + below == 1 else 'are'} not drawn."
    margin = 0.05 * (high - low)
    return figure | {
        "clipped": {
            "says": says,
            "range": [
                0 if axis.get("rangemode") == "tozero" and low >= 0 else low - margin,
                high + margin,
            ],
        },
        "spoken": f"{figure['spoken']}. {says}",
    }
