"""Whether a run learns to think longer: the share that reasons and the length, beside accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from ui.render.charts.accuracy import add_accuracies
from ui.render.charts.curves import Curves, View, metric_points
from ui.render.charts.frame import (
    COLOURS,
    Figure,
    LineStyle,
    colour_of,
    definition,
    empty_figure,
    finish,
    line_traces,
)
from ui.render.charts.live import figure
from ui.render.text import is_number, percent


def reasons(runs: Sequence[Curves], criterion: str | None) -> Figure:
    """The share of each step's completions that reason, and held-out accuracy on the right axis.

    criterion: the run's criterion with the check `reasoning`; None if its rubric has none.
    """
    view = View()
    out = empty_figure("Share that reasons", runs, view)
    out["definition"] = definition("check/reasoning")
    out["layout"]["yaxis"] = {"range": [-0.03, 1.03], "tickformat": ".0%", "tickvals": [0, 0.5, 1]}
    name = f"score/{criterion}"
    if runs and criterion is None:
        out["empty"] = "The run’s rubric has no criterion with the check “reasoning”"
    elif runs and name in runs[0].metrics:
        points = metric_points(runs[0], view, name)
        out["traces"] = line_traces(view, points, LineStyle("", 0, clickable=False))
        out["legend"] = [{"name": "reasons", "colour": COLOURS[0]}]
        known = [v for v in points[1] if is_number(v)]
        if known:
            out["now"] = percent(known[-1])
            out["spoken"] = f"Share that reasons, from {percent(known[0])} to {percent(known[-1])}"
        add_accuracies(out, runs, view)
    return finish(out, runs, view)


def lengths(runs: Sequence[Curves]) -> Figure:
    """Completion length in tokens, and held-out accuracy on the right axis."""
    out = figure("length", runs, View())
    if out["traces"]:
        out["legend"] = [{"name": "length", "colour": colour_of(runs, 0)}]
        add_accuracies(out, runs, View())
    return out
