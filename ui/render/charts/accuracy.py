"""Accuracy on fixed prompts: markers with 95 % Wilson intervals, alone or beside the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ui.render.charts.curves import Axis, Curves, View, rounded
from ui.render.charts.frame import (
    DASHES,
    Figure,
    colour_of,
    definition,
    each,
    empty_figure,
    finish,
    run_legend,
    safe,
)
from ui.render.text import is_number, percent, shorten

SYMBOLS = ("diamond", "square", "circle", "x", "cross", "star")


@dataclass(frozen=True, slots=True)
class MarkerStyle:
    """Markers joined by a thin line, on the left ("y") or the right axis ("y2")."""

    name: str
    colour: str
    dash: str
    symbol: str
    yaxis: str
    clickable: bool
    switch: str = ""  # what hides it in the legend: its run's id, or a name of its own


# eval set -> its title in notes, its name in the legend, and its markers on the right axis
BESIDE_REWARD = {
    "heldout": (
        "Held-out accuracy",
        "held-out, 95 %",
        MarkerStyle("held-out", "--held", "dot", "diamond", "y2", True, "line:heldout"),
    ),
    "second": (
        "Second task",
        "second task, 95 %",
        MarkerStyle("second task", "--series-2", "dot", "square-open", "y2", True, "line:second"),
    ),
}


def heldout(runs: Sequence[Curves], view: View) -> Figure:
    """Held-out accuracy of every run. Unlike the reward, it is always on the same prompts."""
    out = empty_figure("Held-out accuracy", runs, view)
    for i, run in enumerate(runs):
        style = MarkerStyle(
            safe(shorten(run.name)),
            colour_of(runs, i),
            DASHES[i],
            SYMBOLS[i],
            "y",
            i == 0,
            run.run_id,
        )
        out["traces"] += accuracy_traces(run, view, "heldout", style)
    out["legend"] = run_legend(runs)
    out["note"] = (
        "Every evaluation of a task uses the same prompts. "
        "Intervals that overlap widely show no difference."
    )
    out["definition"] = definition("heldout/accuracy")
    out["layout"]["yaxis"] = {"tickformat": ".0%", "rangemode": "tozero"}
    return finish(out, runs, view)


def add_accuracies(out: Figure, runs: Sequence[Curves], view: View) -> None:
    """Add the accuracies of BESIDE_REWARD to a figure, on a right axis from 0 to 100 %.

    Of several runs, each has its own colour and symbol.
    """
    for eval_set, (title, legend, alone) in BESIDE_REWARD.items():
        spoken = []
        for i, run in enumerate(runs):
            style = alone
            if len(runs) > 1:
                style = replace(
                    alone,
                    name=f"{safe(shorten(run.name, 18))}, {alone.name}",
                    colour=colour_of(runs, i),
                    clickable=i == 0,
                    switch=run.run_id,
                )
            traces = accuracy_traces(run, view, eval_set, style)
            if traces:
                out["traces"] += traces
                spoken.append(_first_and_last(run, eval_set))
        if not spoken:
            continue
        colour = alone.colour if len(runs) == 1 else "--mute"
        entry = {"name": legend, "colour": colour, "dash": "point"}
        out["legend"].append(entry if len(runs) > 1 else {**entry, "line": alone.switch})
        out["layout"]["yaxis2"] = {
            "range": [-0.02, 1.02],
            "tickformat": ".0%",
            "tickvals": [0, 0.5, 1],
        }
        out["note"] = f"{title} {each(spoken)}. {out['note']}"


def _first_and_last(run: Curves, eval_set: str) -> str:
    known = [v for _, v in run.metrics[f"{eval_set}/accuracy"] if is_number(v)]
    last = f" → {percent(known[-1])}" if len(known) > 1 else ""
    return f"{percent(known[0])}{last}"


def accuracy_traces(run: Curves, view: View, eval_set: str, style: MarkerStyle) -> list[Figure]:
    """Markers with the 95 % interval as error bars; empty if the run was never evaluated."""
    points = [(s, v) for s, v in run.metrics.get(f"{eval_set}/accuracy", ()) if is_number(v)]
    if not points:
        return []
    low = {s: v for s, v in run.metrics.get(f"{eval_set}/accuracy_low", ()) if is_number(v)}
    high = {s: v for s, v in run.metrics.get(f"{eval_set}/accuracy_high", ()) if is_number(v)}
    axis = Axis(run.steps, view.x)
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "yaxis": style.yaxis,
        "name": style.name,
        "legendgroup": style.switch,
        "x": [axis.at(s) for s, _ in points],
        "y": [rounded(v) for _, v in points],
        "customdata": [s for s, _ in points] if style.clickable else None,
        "line": {"color": style.colour, "width": 1, "dash": style.dash},
        "marker": {"color": style.colour, "size": 6, "symbol": style.symbol},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "color": style.colour,
            "thickness": 1.2,
            "width": 3,
            "array": [rounded(max(0.0, high.get(s, v) - v)) for s, v in points],
            "arrayminus": [rounded(max(0.0, v - low.get(s, v))) for s, v in points],
        },
        "hovertemplate": "%{y:.0%}",
    }
    return [trace]
