"""Rows -> figures for live_chart.js: plain data in Plotly's own words. Pure, and without a colour or a size: those are CSS variables."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import Any

from grpo_core.config import fields_by_name
from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import VerdictCounts
from grpo_core.store.downsample import min_max
from grpo_core.types import StepMetrics
from ui.render import outliers
from ui.render.text import is_number, percent, plain, short, visible

METRICS: dict[str, Mapping[str, str]] = {f.name: f.metadata for f in fields(StepMetrics)}
FIELDS = fields_by_name()
AXES = {"step": "step", "time": "seconds", "tokens": "tokens"}
SPIKED = (
    "reward_mean",
    "reward_std",
    "kl",
    "loss",
    "completion_tokens_mean",
    "entropy",
    "clip_low_frac",
    "clip_high_frac",
    "grad_norm",
)  # columns that are drawn
DETAILS = {
    "entropy": ("entropy",),
    "clip": ("clip_low_frac", "clip_high_frac"),
    "gradient": ("grad_norm",),
}
DASHES = (
    "solid",
    "dash",
    "dot",
    "dashdot",
    "longdash",
    "longdashdot",
)  # with the colour, so that no run is told by colour alone
COLOURS = ("--accent", "--series-1", "--series-2", "--series-3", "--series-4", "--series-5")
# What is_informative first, from the bottom up; then what is_informative the wrong thing; then what is_informative nothing.
VERDICT_COLOURS = {
    "healthy": "--v-healthy",
    "graded": "--v-healthy",
    "polish": "--v-polish",
    "dominated": "--v-dominated",
    "phantom": "--v-phantom",
    "truncated": "--v-truncated",
    "unscored": "--v-unscored",
    "gated": "--v-gated",
    "tied": "--v-tied",
    "all_wrong": "--v-all-wrong",
    "all_right": "--v-all-right",
}
DRAWN = 600  # points of a line; a curve is some 300 pixels wide
SOFTER = 0.35  # opacity of what lies behind a smoothed line

Figure = dict[str, Any]
Points = tuple[list[float], list[float | None], list[int]]  # x, y, step


@dataclass(frozen=True, slots=True)
class Curves:
    """What is drawn of one run: rows of `steps` in order (each with its `step`) and the open metrics as (step, value) lists."""

    run_id: str
    name: str
    steps: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Sequence[tuple[int, float | None]]]


@dataclass(frozen=True, slots=True)
class View:
    """How curves are drawn: the x axis, exponential smoothing in [0, 1), a logarithmic y axis, and what the last curve shows."""

    x: str = "step"
    smoothing: float = 0.0
    log: bool = False
    detail: str = "entropy"


class Axis:
    """step -> x: the step itself, the seconds spent in steps until then, or the tokens sampled until then.

    The rows may be thinned; a row then stands for all steps since the row before it.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], x: str):
        self._steps, self._xs = [0], [0.0]
        self._column = column = {"time": "step_seconds", "tokens": "tokens"}.get(x)
        for row in steps:
            gap = row["step"] - self._steps[-1]
            self._steps.append(row["step"])
            self._xs.append(self._xs[-1] + gap * float((column and row.get(column)) or 0))

    def at(self, step: int) -> float:
        if self._column is None:
            return float(step)
        return _rounded(self._xs[max(0, bisect_right(self._steps, step) - 1)])


def smoothed(values: Sequence[float | None], weight: float) -> list[float | None]:
    """Exponential moving average, corrected for its start (Adam's bias correction): s_n = Σ w^(n−i)·(1−w)·v_i / (1 − w^n).

    Gaps stay gaps and do not count. weight 0 returns the values.
    """
    out: list[float | None] = []
    mean, seen = 0.0, 0
    for value in values:
        if not is_number(value):
            out.append(None)
            continue
        seen += 1
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**seen))
    return out


def figure(name: str, runs: Sequence[Curves], view: View) -> Figure:
    """The figure of one curve: the first run in full, the others as lines to compare with. FIGURES has the names."""
    return outliers.marked(
        FIGURES[name](list(runs[: len(DASHES)]), view), any(len(run.steps) > DRAWN for run in runs)
    )


# ---- the curves --------------------------------------------------------------------------------------------------------


def reward(runs: Sequence[Curves], view: View) -> Figure:
    """Mean reward with its spread over the step's completions, and held-out accuracy with its 95 % interval on the right.

    Beside other runs the spread is left out, because bands over bands hide the lines.
    """
    held = heldout_trace(runs[0], view, 0, "y2") if runs else []
    second = heldout_trace(runs[0], view, 0, "y2", "second") if runs else []
    out = _compared_reward(runs, view)
    if len(runs) == 1:
        out["traces"] = _finished({**out, "traces": _band(runs[0], view) + out["traces"]}, view)[
            "traces"
        ]
        out["legend"] = [
            {"name": "mean", "colour": COLOURS[0]},
            {"name": "± spread", "colour": "--accent-band", "dash": "area"},
        ]
    if held:
        out["traces"] += held
        out["legend"].append(
            {"name": "held-out accuracy, 95 %", "colour": "--held", "dash": "point"}
        )
        out["layout"]["yaxis2"] = {
            "range": [-0.02, 1.02],
            "tickformat": ".0%",
            "tickvals": [0, 0.5, 1],
        }
        known = [v for _, v in runs[0].metrics["heldout/accuracy"] if is_number(v)]
        out["note"] = (
            f"Held-out accuracy {percent(known[0])}"
            + (f" → {percent(known[-1])}" if len(known) > 1 else "")
            + f". {out['note']}"
        )
    if second:
        out["traces"] += second
        out["legend"].append({"name": "second task, 95 %", "colour": "--series-2", "dash": "point"})
        out["layout"].setdefault(
            "yaxis2", {"range": [-0.02, 1.02], "tickformat": ".0%", "tickvals": [0, 0.5, 1]}
        )
        known = [v for _, v in runs[0].metrics["second/accuracy"] if is_number(v)]
        out["note"] = (
            f"Second task {percent(known[0])}"
            + (f" → {percent(known[-1])}" if len(known) > 1 else "")
            + f". {out['note']}"
        )
    return out


def kl(runs: Sequence[Curves], view: View) -> Figure:
    """KL to the reference, always drawn; without a coefficient it says that it is measured, not trained on."""
    out = _metric("kl")(runs, view)
    out["layout"]["yaxis"].setdefault("rangemode", "tozero")
    coefs = [
        row["kl_coef"] for row in (runs[0].steps if runs else ()) if is_number(row.get("kl_coef"))
    ]
    if coefs:
        measured = any(is_number(row.get("kl")) for row in runs[0].steps)
        out["note"] = (
            f"Coefficient {plain(coefs[-1])}. "
            if coefs[-1] > 0
            else "Coefficient 0: measured, not trained on. "
            if measured
            else "Not measured: measure_kl is off. "
        ) + out["note"]
    return out


def criteria(runs: Sequence[Curves], view: View) -> Figure:
    """Mean score of every criterion of the first run, before its weight."""
    run = runs[0] if runs else None
    names = [n for n in (run.metrics if run else ()) if n.startswith("score/")][: len(COLOURS)]
    traces, legend = [], []
    for i, name in enumerate(names):
        label = name.removeprefix("score/")
        traces += _series(
            run, view, _metric_points(run, view, name), _safe(label), i, clickable=True
        )
        legend.append({"name": visible(label), "colour": COLOURS[i], "dash": DASHES[i]})
    out = _empty_figure("Scores by criterion", runs, view)
    out.update(
        traces=traces,
        legend=legend,
        note="Means, before the weights. One that stays flat is_informative nothing; one that rises while "
        "accuracy falls is being gamed.",
    )
    out["layout"]["yaxis"] = {"range": [-0.03, 1.03], "tickvals": [0, 0.5, 1]}
    return _finished(out, view)


def detail(runs: Sequence[Curves], view: View) -> Figure:
    """Entropy, clipping or the gradient norm, as chosen."""
    names = DETAILS.get(view.detail, DETAILS["entropy"])
    if len(names) == 1:
        return _metric(names[0])(runs, view)
    traces = []
    for i, name in enumerate(names):
        traces += [
            t for run in runs[:1] for t in _lines(run, view, name, i, True, METRICS[name]["title"])
        ]
    out = _figure("clip_frac", runs[:1], view, traces, list(names))
    out["legend"] = [
        {"name": METRICS[n]["title"], "colour": COLOURS[i], "dash": DASHES[i]}
        for i, n in enumerate(names)
    ]
    return out


def heldout(runs: Sequence[Curves], view: View) -> Figure:
    """Held-out accuracy of every run with its 95 % Wilson interval: the comparison that the drawn prompts do not disturb."""
    traces = [t for i, run in enumerate(runs) for t in heldout_trace(run, view, i, "y")]
    out = _empty_figure("Held-out accuracy", runs, view)
    out.update(
        traces=traces,
        legend=_run_legend(runs),
        note="Same prompts in every evaluation of a task. Intervals that overlap widely: no difference shown.",
    )
    out["layout"]["yaxis"] = {"tickformat": ".0%", "rangemode": "tozero"}
    return _finished(out, view)


def verdicts(series: Sequence[VerdictCounts], key: str) -> Figure:
    """Groups of each verdict over the steps, stacked, as shares: what the sampling was spent on. A click opens the steps of the point."""
    found = [code for code in VERDICT_COLOURS if any(s.counts.get(code) for s in series)]
    out = _empty_figure("Verdicts", (), View())
    out |= {"key": f"{key}|verdicts", "empty": "Appears when the first step has been scored"}
    if not series:
        return out
    totals = [sum(s.counts.values()) for s in series]
    out["traces"] = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "all",
            "name": _safe(VERDICTS[code][0]),
            "x": [s.first for s in series],
            "y": [_rounded(s.counts.get(code, 0) / n) for s, n in zip(series, totals, strict=True)],
            "customdata": [s.first for s in series],
            "text": [
                f"{s.counts.get(code, 0)} of {n}" for s, n in zip(series, totals, strict=True)
            ],
            "hovertemplate": "%{text}",
            "line": {"width": 0.5, "color": VERDICT_COLOURS[code]},
            "fillcolor": VERDICT_COLOURS[code],
        }
        for code in found
    ]
    out["legend"] = [
        {"name": VERDICTS[code][0], "colour": VERDICT_COLOURS[code], "dash": "area"}
        for code in found
    ]
    out["layout"]["yaxis"] = {"range": [0, 1], "tickformat": ".0%", "tickvals": [0, 0.5, 1]}
    every = series[0].last - series[0].first + 1
    out["note"] = (
        "Share of each step's groups" if every == 1 else f"Share of the groups of {every} steps"
    ) + ". Click to see the groups of a point."
    out["spoken"] = "Verdicts over the steps: " + ", ".join(
        f"{VERDICTS[code][0]} {sum(s.counts.get(code, 0) for s in series):,}" for code in found
    )
    return out


def heldout_trace(
    run: Curves, view: View, place: int, yaxis: str, exam: str = "heldout"
) -> list[Figure]:
    """Markers with the 95 % interval as error bars; nothing if the run was never evaluated. exam: "second" for the task that is not trained on."""
    points = [(s, v) for s, v in run.metrics.get(f"{exam}/accuracy", ()) if is_number(v)]
    if not points:
        return []
    low, high = (dict(run.metrics.get(f"{exam}/accuracy_{side}", ())) for side in ("low", "high"))
    axis = Axis(run.steps, view.x)
    colour = ("--series-2" if exam == "second" else "--held") if yaxis == "y2" else COLOURS[place]
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "yaxis": yaxis,
            "name": ("second task" if exam == "second" else "held-out")
            if yaxis == "y2"
            else _safe(run.name),
            "x": [axis.at(s) for s, _ in points],
            "y": [_rounded(v) for _, v in points],
            "customdata": [s for s, _ in points] if place == 0 else None,
            "line": {
                "color": colour,
                "width": 1,
                "dash": "dot" if yaxis == "y2" else DASHES[place],
            },
            "marker": {
                "color": colour,
                "size": 6,
                "symbol": "square-open"
                if exam == "second"
                else ["diamond", "square", "circle", "x", "cross", "star"][place],
            },
            "error_y": {
                "type": "data",
                "symmetric": False,
                "color": colour,
                "thickness": 1.2,
                "width": 3,
                "array": [_rounded(max(0.0, high.get(s, v) - v)) for s, v in points],
                "arrayminus": [_rounded(max(0.0, v - low.get(s, v))) for s, v in points],
            },
            "hovertemplate": "%{y:.0%}",
        }
    ]


def _metric(name: str) -> Callable[[Sequence[Curves], View], Figure]:
    """The curve of one column of `steps`, of every run."""

    def build(runs: Sequence[Curves], view: View) -> Figure:
        return _figure(
            name,
            runs,
            view,
            [t for i, run in enumerate(runs) for t in _lines(run, view, name, i, len(runs) > 1)],
            [name],
        )

    return build


_compared_reward = _metric("reward_mean")

FIGURES: dict[str, Callable[[Sequence[Curves], View], Figure]] = {
    "reward": reward,
    "compared reward": _compared_reward,
    "kl": kl,
    "loss": _metric("loss"),
    "length": _metric("completion_tokens_mean"),
    "criteria": criteria,
    "detail": detail,
    "heldout": heldout,
}


# ---- their parts -------------------------------------------------------------------------------------------------------


def _figure(
    name: str, runs: Sequence[Curves], view: View, traces: list[Figure], columns: list[str]
) -> Figure:
    """A figure titled, explained and summed up from the metadata of a StepMetrics field."""
    meta = METRICS[name]
    out = _empty_figure(meta["title"], runs, view)
    known = [
        row[columns[0]] for row in (runs[0].steps if runs else ()) if is_number(row.get(columns[0]))
    ]
    unit = "" if meta["unit"] in ("1", "reward", "share") else f" {meta['unit']}"
    if known:
        last = runs[0].steps[-1].get(name)
        out["now"] = short(last) if is_number(last) and len(runs) == 1 else ""
        out["spoken"] = (
            f"{meta['title']} over {len(known)} points, from {short(known[0])} to {short(known[-1])}{unit}"
        )
    out.update(
        traces=traces, note=meta["reading"], legend=_run_legend(runs) if len(runs) > 1 else []
    )
    return _finished(out, view)


def _empty_figure(title: str, runs: Sequence[Curves], view: View) -> Figure:
    return {
        # Zoom belongs to a run and an axis: Plotly keeps it as long as this key stays.
        "key": f"{runs[0].run_id if runs else ''}|{view.x}|{view.log}|{title}",
        "title": title,
        "now": "",
        "note": "",
        "spoken": title,
        "axis": AXES.get(view.x, "step"),
        "legend": [],
        "traces": [],
        "empty": "Appears after the first step",
        "changes": _changes(runs[0], view) if runs else [],
        "layout": {
            "xaxis": {
                "rangemode": "tozero",
                "unifiedhovertitle": {"text": f"{AXES.get(view.x, 'step')} %{{x}}"},
            },
            "yaxis": {},
        },
    }


def _finished(out: Figure, view: View) -> Figure:
    """Takes the traces without a point away, and makes the axis logarithmic where every value allows it."""
    out["traces"] = [t for t in out["traces"] if any(is_number(y) for y in t["y"])]
    if not out["traces"]:
        out["legend"] = []
    if changes := out.pop("changes", None):
        out["layout"]["shapes"] = [
            {
                "type": "line",
                "x0": x,
                "x1": x,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "--held", "width": 1, "dash": "dot"},
            }
            for x, _ in changes
        ]
        out["note"] = (
            f"By hand: {', '.join(dict.fromkeys(what for _, what in changes[-3:]))}. {out['note']}"
        )
    if view.x == "step" and all(x <= 6 for t in out["traces"] for x in t["x"]):
        out["layout"]["xaxis"]["dtick"] = 1  # there is no step 0.5
    if view.log:
        on_axis = [t for t in out["traces"] if t.get("yaxis") != "y2"]
        lines = [t for t in on_axis if t.get("hoverinfo") != "skip"]
        if all(y is None or y > 0 for t in lines for y in t["y"]):
            out["layout"]["yaxis"] = {"type": "log"}
            if any(
                y <= 0 for t in on_axis for y in t["y"] if y is not None
            ):  # a spread that reaches 0 has no place on this axis
                out["traces"] = [t for t in out["traces"] if t.get("hoverinfo") != "skip"]
        elif out["traces"]:
            out["note"] = f"Not logarithmic: it has values of 0 or below. {out['note']}"
    return out


def _changes(run: Curves, view: View) -> list[tuple[float, str]]:
    """Where a person changed a setting, and what to, in order."""
    axis = Axis(run.steps, view.x)
    found = sorted(
        (step, name.removeprefix("knob/"), value)
        for name, points in run.metrics.items()
        if name.startswith("knob/")
        for step, value in points
        if is_number(value)
    )
    return [
        (
            axis.at(step),
            f"{FIELDS[name].title if name in FIELDS else visible(name)} {plain(value)} from step {step:,}",
        )
        for step, name, value in found
    ]


def _run_legend(runs: Sequence[Curves]) -> list[Figure]:
    return [
        {"name": visible(run.name), "colour": COLOURS[i], "dash": DASHES[i]}
        for i, run in enumerate(runs)
    ]


def _lines(
    run: Curves, view: View, name: str, place: int, named: bool, label: str | None = None
) -> list[Figure]:
    points = _column_points(run, view, name)
    return _series(
        run,
        view,
        points,
        _safe(label or run.name) if named else "",
        place,
        clickable=place == 0 or label is not None,
    )


def _series(
    run: Curves, view: View, points: Points, name: str, place: int, clickable: bool
) -> list[Figure]:
    """A line, and behind it the raw values if it is smoothed."""
    x, y, steps = points
    line = {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": name,
        "x": x,
        "y": y,
        "hovertemplate": "%{y:.4~g}" + ("" if name else "<extra></extra>"),
        "line": {"color": COLOURS[place], "width": 2 if place == 0 else 1.6, "dash": DASHES[place]},
        "marker": {"color": COLOURS[place]},
        "customdata": steps if clickable else None,
    }
    if not view.smoothing or len(x) < 2:
        return [line]
    soft = {
        **line,
        "opacity": SOFTER,
        "line": {**line["line"], "width": 1},
        "name": f"{name}, raw" if name else "raw",
        "hovertemplate": "%{y:.4~g}",
    }
    return [
        soft,
        {
            **line,
            "name": name or "smoothed",
            "hovertemplate": "%{y:.4~g}",
            "y": [None if v is None else _rounded(v) for v in smoothed(y, view.smoothing)],
        },
    ]


def _band(run: Curves, view: View) -> list[Figure]:
    """mean ± spread as an area; only where both are known, because Plotly cannot fill across gaps."""
    axis = Axis(run.steps, view.x)
    rows = [
        r for r in run.steps if is_number(r.get("reward_mean")) and is_number(r.get("reward_std"))
    ]
    if len(rows) < 2:
        return []
    x = [axis.at(r["step"]) for r in rows]
    mean = smoothed([r["reward_mean"] for r in rows], view.smoothing)
    spread = smoothed([r["reward_std"] for r in rows], view.smoothing)
    edge = {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [
        {
            **edge,
            "name": "mean − spread",
            "y": [_rounded(m - s) for m, s in zip(mean, spread, strict=True)],
        },
        {
            **edge,
            "name": "mean + spread",
            "y": [_rounded(m + s) for m, s in zip(mean, spread, strict=True)],
            "fill": "tonexty",
            "fillcolor": "--accent-band",
        },
    ]


def _column_points(run: Curves, view: View, name: str) -> Points:
    return _drawn(Axis(run.steps, view.x), [(row["step"], row.get(name)) for row in run.steps])


def _metric_points(run: Curves, view: View, name: str) -> Points:
    return _drawn(Axis(run.steps, view.x), run.metrics[name])


def _drawn(axis: Axis, points: Sequence[tuple[int, Any]]) -> Points:
    """At most DRAWN points, the lowest and the highest of every stretch among them: a spike is never thinned away."""
    points = min_max(points, [v if is_number(v) else None for _, v in points], DRAWN)
    return (
        [axis.at(s) for s, _ in points],
        [_rounded(v) if is_number(v) else None for _, v in points],
        [s for s, _ in points],
    )


def _rounded(value: float) -> float:
    """Five significant digits: more cannot be seen, and would double what each refresh sends."""
    return float(f"{value:.5g}")


def _safe(name: str) -> str:
    """A foreign name for Plotly, which reads <b> and <a> in names: shown as that very text."""
    return escape(visible(name), quote=False)
