"""What all figures share: titles, axes, legends, colours, lines, and marks of changed settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from grpo_core.analysis.text import together
from grpo_core.config import fields_by_name
from grpo_core.types import RESTART
from ui.render.charts.curves import Axis, Curves, Points, View, rounded, smoothed
from ui.render.glossary import address, entries
from ui.render.text import is_number, plain, short, shorten, visible

AXES = {"step": "step", "time": "seconds", "tokens": "tokens"}
FIELDS = fields_by_name()
# Each run has its own dash beside its own colour, so that colour alone never identifies a run.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
COLOURS = ("--accent", "--series-1", "--series-2", "--series-3", "--series-4", "--series-5")
RAW_OPACITY = 0.35  # of the raw line behind a smoothed one

Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LineStyle:
    """One line. index: its dash, and without a colour of its own its colour.

    clickable: a click opens the point's step. switch: what hides the line in the legend: the id of
    its run, or a name of the line's own.
    """

    name: str
    index: int
    clickable: bool
    colour: str = ""
    switch: str = ""

    @classmethod
    def of_run(cls, runs: Sequence[Curves], i: int) -> LineStyle:
        """The line of the i-th run; without a name if it is the only one."""
        name = runs[i].name if len(runs) > 1 else ""
        return cls(name, i, i == 0, colour_of(runs, i), runs[i].run_id)


def colour_of(runs: Sequence[Curves], i: int) -> str:
    return runs[i].colour or COLOURS[i]


def faint(colour: str) -> str:
    """The colour of an area behind lines; live_chart.js reads the part after the slash."""
    return f"{colour}/.14"


def safe(name: str) -> str:
    """A foreign name, escaped because Plotly interprets <b> and <a> in names."""
    return escape(visible(name), quote=False)


def definition(key: str) -> dict[str, str]:
    """What a metric means, shown by a press on the chart's title; key: of the glossary."""
    entry = entries()[key]
    return {
        "help": entry.help,
        "unit": "" if entry.unit == "1" else entry.unit,
        "reading": entry.reading,
        "link": address(key),
    }


def each(texts: Sequence[str]) -> str:
    """What is true of each run, in the legend's order: "0.02 and 0". Equal texts stand once."""
    if len(set(texts)) == 1:
        return texts[0]
    return together(texts)


def empty_figure(title: str, runs: Sequence[Curves], view: View) -> Figure:
    unit = AXES.get(view.x, "step")
    return {
        # Plotly keeps the zoom while this key stays the same: one zoom for each run and axis.
        "key": f"{runs[0].run_id if runs else ''}|{view.x}|{view.log}|{title}",
        # Charts of one value share their horizontal range.
        "range_of": f"{runs[0].run_id}|{view.x}" if runs else "",
        "title": title,
        "definition": {},
        "now": "",
        "note": "",
        "spoken": title,
        "axis": unit,
        "legend": [],
        "traces": [],
        "empty": _why_empty(runs),
        "layout": {
            "xaxis": {"rangemode": "tozero", "unifiedhovertitle": {"text": f"{unit} %{{x}}"}},
            "yaxis": {},
        },
    }


def _why_empty(runs: Sequence[Curves]) -> str:
    if runs and runs[0].trainer and runs[0].steps:
        return f"Not recorded by {visible(runs[0].trainer)}"
    if runs and runs[0].steps:
        return "Nothing to measure so far"  # such as the errors of tools that were never called
    return "Appears after the first step"


def finish(out: Figure, runs: Sequence[Curves], view: View) -> Figure:
    """Drop empty traces, mark the settings that people changed, and apply the logarithmic axis."""
    out["traces"] = [t for t in out["traces"] if any(is_number(y) for y in t["y"])]
    if not out["traces"]:
        out["legend"] = []
    if changed := [(run, changes) for run in runs if (changes := _changes(run, view))]:
        out["layout"]["shapes"] = [_vertical_line(x) for _, all_of in changed for x, _ in all_of]
        texts = "; ".join(_spoken(run, all_of, len(runs) > 1) for run, all_of in changed)
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
    """(x, text) of every setting that a person changed, and of lost workers, in order."""
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
    lost = {i.step for i in run.interventions if i.kind == RESTART}
    changes += [(axis.at(step), f"workers lost, on from step {step:,}") for step in lost]
    return sorted(changes, key=lambda change: change[0])


def _spoken(run: Curves, changes: Sequence[tuple[float, str]], named: bool) -> str:
    """The last three changes of a run, with its name if there are several runs."""
    texts = ", ".join(dict.fromkeys(text for _, text in changes[-3:]))
    return f"{shorten(visible(run.name))}: {texts}" if named else texts


def _vertical_line(x: float) -> Figure:
    line = {"color": "--held", "width": 1, "dash": "dot"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def run_legend(runs: Sequence[Curves], column: str = "") -> list[Figure]:
    """An entry for each run, which can be pressed to hide it. column: also say its last value."""
    entries = []
    for i, run in enumerate(runs):
        last = run.steps[-1].get(column) if run.steps else None
        entries.append(
            {
                "name": visible(run.name),
                "value": short(last) if is_number(last) else "",
                "colour": colour_of(runs, i),
                "dash": DASHES[i],
                "run": run.run_id,
            }
        )
    return entries


def line_traces(view: View, points: Points, style: LineStyle) -> list[Figure]:
    """A line. If it is smoothed, the raw values are drawn faintly behind it."""
    x, y, steps = points
    i = style.index
    colour = style.colour or COLOURS[i]
    name = safe(shorten(style.name))
    line = {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": name,
        "meta": visible(style.name),
        "legendgroup": style.switch,
        "x": x,
        "y": y,
        "hovertemplate": "%{y:.4~g}" + ("" if name else "<extra></extra>"),
        "line": {"color": colour, "width": 2 if i == 0 else 1.6, "dash": DASHES[i]},
        "marker": {"color": colour},
        "customdata": steps if style.clickable else None,
    }
    if not view.smoothing or len(x) < 2:
        return [line]
    raw = {
        **line,
        "opacity": RAW_OPACITY,
        "line": {**line["line"], "width": 1},
        "name": f"{name}, raw" if name else "raw",
        "meta": f"{line['meta']}, raw" if name else "raw",
        "hovertemplate": "%{y:.4~g}",
    }
    average = {
        **line,
        "name": name or "smoothed",
        "meta": line["meta"] or "smoothed",
        "hovertemplate": "%{y:.4~g}",
        "y": [None if v is None else rounded(v) for v in smoothed(y, view.smoothing)],
    }
    return [raw, average]
