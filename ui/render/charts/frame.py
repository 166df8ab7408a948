"""What all figures share: titles, axes, legends, colours, lines, and marks of changed settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from grpo_core.config import fields_by_name
from ui.render.charts.curves import Axis, Curves, Points, View, rounded, smoothed
from ui.render.text import is_number, plain, visible

AXES = {"step": "step", "time": "seconds", "tokens": "tokens"}
FIELDS = fields_by_name()
# Each run has its own dash beside its own colour, so that colour alone never identifies a run.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
COLOURS = ("--accent", "--series-1", "--series-2", "--series-3", "--series-4", "--series-5")
RAW_OPACITY = 0.35  # of the raw line behind a smoothed one

Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LineStyle:
    """One line. index: which colour and dash. clickable: a click opens the point's step."""

    name: str
    index: int
    clickable: bool


def safe(name: str) -> str:
    """A foreign name, escaped because Plotly interprets <b> and <a> in names."""
    return escape(visible(name), quote=False)


def empty_figure(title: str, runs: Sequence[Curves], view: View) -> Figure:
    unit = AXES.get(view.x, "step")
    return {
        # Plotly keeps the zoom while this key stays the same: one zoom for each run and axis.
        "key": f"{runs[0].run_id if runs else ''}|{view.x}|{view.log}|{title}",
        "title": title,
        "now": "",
        "note": "",
        "spoken": title,
        "axis": unit,
        "legend": [],
        "traces": [],
        "empty": "Appears after the first step",
        "layout": {
            "xaxis": {"rangemode": "tozero", "unifiedhovertitle": {"text": f"{unit} %{{x}}"}},
            "yaxis": {},
        },
    }


def finish(out: Figure, runs: Sequence[Curves], view: View) -> Figure:
    """Drop empty traces, mark changed settings of the first run, and apply the logarithmic axis."""
    out["traces"] = [t for t in out["traces"] if any(is_number(y) for y in t["y"])]
    if not out["traces"]:
        out["legend"] = []
    if changes := _changes(runs[0], view) if runs else []:
        out["layout"]["shapes"] = [_vertical_line(x) for x, _ in changes]
        texts = ", ".join(dict.fromkeys(text for _, text in changes[-3:]))
        out["note"] = f"Changed by hand: {texts}. {out['note']}"
    if view.x == "step" and all(x <= 6 for t in out["traces"] for x in t["x"]):
        out["layout"]["xaxis"]["dtick"] = 1  # there is no step 0.5
    if view.log:
        _make_logarithmic(out)
    return out


def _make_logarithmic(out: Figure) -> None:
    """Use a logarithmic axis if every value allows it; otherwise say in the note why not."""
    on_axis = [t for t in out["traces"] if t.get("yaxis") != "y2"]
    lines = [t for t in on_axis if t.get("hoverinfo") != "skip"]
    if all(y is None or y > 0 for t in lines for y in t["y"]):
        out["layout"]["yaxis"] = {"type": "log"}
        # A band that reaches 0 has no place on this axis.
        if any(y <= 0 for t in on_axis for y in t["y"] if y is not None):
            out["traces"] = [t for t in out["traces"] if t.get("hoverinfo") != "skip"]
    elif out["traces"]:
        out["note"] = f"Not logarithmic: some values are 0 or below. {out['note']}"


def _changes(run: Curves, view: View) -> list[tuple[float, str]]:
    """(x, text) of every setting that a person changed during the run, in order."""
    axis = Axis(run.steps, view.x)
    settings = sorted(
        (i.step, i.field or "", i.value)
        for i in run.interventions
        if i.kind == "setting" and is_number(i.value)
    )
    changes = []
    for step, name, value in settings:
        title = FIELDS[name].title if name in FIELDS else visible(name)
        changes.append((axis.at(step), f"{title} {plain(value)} from step {step:,}"))
    return changes


def _vertical_line(x: float) -> Figure:
    line = {"color": "--held", "width": 1, "dash": "dot"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def run_legend(runs: Sequence[Curves]) -> list[Figure]:
    return [
        {"name": visible(run.name), "colour": COLOURS[i], "dash": DASHES[i]}
        for i, run in enumerate(runs)
    ]


def line_traces(view: View, points: Points, style: LineStyle) -> list[Figure]:
    """A line. If it is smoothed, the raw values are drawn faintly behind it."""
    x, y, steps = points
    i = style.index
    line = {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": style.name,
        "x": x,
        "y": y,
        "hovertemplate": "%{y:.4~g}" + ("" if style.name else "<extra></extra>"),
        "line": {"color": COLOURS[i], "width": 2 if i == 0 else 1.6, "dash": DASHES[i]},
        "marker": {"color": COLOURS[i]},
        "customdata": steps if style.clickable else None,
    }
    if not view.smoothing or len(x) < 2:
        return [line]
    raw = {
        **line,
        "opacity": RAW_OPACITY,
        "line": {**line["line"], "width": 1},
        "name": f"{style.name}, raw" if style.name else "raw",
        "hovertemplate": "%{y:.4~g}",
    }
    average = {
        **line,
        "name": style.name or "smoothed",
        "hovertemplate": "%{y:.4~g}",
        "y": [None if v is None else rounded(v) for v in smoothed(y, view.smoothing)],
    }
    return [raw, average]
