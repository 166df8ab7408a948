"""The live curves of a run, and the same curves of several runs over one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial

from grpo_core.types import StepMetrics
from ui.render import outliers
from ui.render.charts.accuracy import add_accuracies, heldout
from ui.render.charts.curves import (
    DRAWN,
    Axis,
    Curves,
    View,
    column_points,
    metric_points,
    rounded,
    smoothed,
)
from ui.render.charts.frame import (
    COLOURS,
    DASHES,
    Figure,
    LineStyle,
    empty_figure,
    finish,
    line_traces,
    run_legend,
    safe,
)
from ui.render.text import is_number, plain, short, visible

METRICS: dict[str, Mapping[str, str]] = {f.name: f.metadata for f in fields(StepMetrics)}
# The columns of `steps` that are drawn. Thinning in the store keeps their spikes.
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
)
# choice of the last curve -> its columns
DETAILS = {
    "entropy": ("entropy",),
    "clip": ("clip_low_frac", "clip_high_frac"),
    "gradient": ("grad_norm",),
}


def figure(name: str, runs: Sequence[Curves], view: View) -> Figure:
    """The figure `name`, a key of FIGURES. The first run is drawn in full, the others as lines."""
    drawn = FIGURES[name](list(runs[: len(DASHES)]), view)
    return outliers.marked(drawn, thinned=any(len(run.steps) > DRAWN for run in runs))


def metric(
    column: str, runs: Sequence[Curves], view: View, behind: Sequence[Figure] = ()
) -> Figure:
    """One column of `steps`, a line for each run. behind: traces below the lines."""
    traces = list(behind)
    for i, run in enumerate(runs):
        style = LineStyle(safe(run.name) if len(runs) > 1 else "", i, clickable=i == 0)
        traces += line_traces(view, column_points(run, view, column), style)
    out = _described(column, runs, view)
    out["traces"] = traces
    return finish(out, runs, view)


def reward(runs: Sequence[Curves], view: View) -> Figure:
    """Mean reward, its spread over the step's completions, and accuracies with 95 % intervals.

    With several runs the spread is left out, because overlapping bands hide the lines.
    """
    if len(runs) != 1:
        out = metric("reward_mean", runs, view)
    else:
        out = metric("reward_mean", runs, view, _band(runs[0], view))
        out["legend"] = [
            {"name": "mean", "colour": COLOURS[0]},
            {"name": "± spread", "colour": "--accent-band", "dash": "area"},
        ]
    if runs:
        add_accuracies(out, runs[0], view)
    return out


def kl(runs: Sequence[Curves], view: View) -> Figure:
    """KL to the reference. The note says whether it is in the loss, only measured, or neither."""
    out = metric("kl", runs, view)
    out["layout"]["yaxis"].setdefault("rangemode", "tozero")
    steps = runs[0].steps if runs else ()
    coefs = [row["kl_coef"] for row in steps if is_number(row.get("kl_coef"))]
    if not coefs:
        return out
    if coefs[-1] > 0:
        meaning = f"Coefficient {plain(coefs[-1])}."
    elif any(is_number(row.get("kl")) for row in steps):
        meaning = "Coefficient 0: measured, not trained on."
    else:
        meaning = "Not measured: measure_kl is off."
    out["note"] = f"{meaning} {out['note']}"
    return out


def criteria(runs: Sequence[Curves], view: View) -> Figure:
    """Mean score of each criterion of the first run, before its weight."""
    out = empty_figure("Scores by criterion", runs, view)
    if runs:
        names = [name for name in runs[0].metrics if name.startswith("score/")]
        for i, name in enumerate(names[: len(COLOURS)]):
            label = name.removeprefix("score/")
            points = metric_points(runs[0], view, name)
            out["traces"] += line_traces(view, points, LineStyle(safe(label), i, clickable=True))
            out["legend"].append({"name": visible(label), "colour": COLOURS[i], "dash": DASHES[i]})
    out["note"] = (
        "Mean scores, before weights. A flat score teaches nothing. "
        "A score that rises while accuracy falls is being gamed."
    )
    out["layout"]["yaxis"] = {"range": [-0.03, 1.03], "tickvals": [0, 0.5, 1]}
    return finish(out, runs, view)


def detail(runs: Sequence[Curves], view: View) -> Figure:
    """Entropy, clipping or the gradient norm, as `view.detail` says. Clipping: the first run."""
    columns = DETAILS.get(view.detail, DETAILS["entropy"])
    if len(columns) == 1:
        return metric(columns[0], runs, view)
    out = _described("clip_frac", runs[:1], view, columns[0])
    for i, column in enumerate(columns):
        title = METRICS[column]["title"]
        for run in runs[:1]:
            style = LineStyle(safe(title), i, clickable=True)
            out["traces"] += line_traces(view, column_points(run, view, column), style)
    out = finish(out, runs[:1], view)
    out["legend"] = [
        {"name": METRICS[column]["title"], "colour": COLOURS[i], "dash": DASHES[i]}
        for i, column in enumerate(columns)
    ]
    return out


def _described(name: str, runs: Sequence[Curves], view: View, column: str | None = None) -> Figure:
    """A figure without traces, with title, note and summary from a StepMetrics field's metadata.

    column: the column that the spoken summary reads, if it is not `name`.
    """
    meta = METRICS[name]
    column = column or name
    out = empty_figure(meta["title"], runs, view)
    out["note"] = meta["reading"]
    out["legend"] = run_legend(runs) if len(runs) > 1 else []
    if not runs:
        return out
    steps = runs[0].steps
    known = [row[column] for row in steps if is_number(row.get(column))]
    if not known:
        return out
    unit = "" if meta["unit"] in ("1", "reward", "share") else f" {meta['unit']}"
    last = steps[-1].get(name)
    out["now"] = short(last) if is_number(last) and len(runs) == 1 else ""
    out["spoken"] = (
        f"{meta['title']} over {len(known)} points, "
        f"from {short(known[0])} to {short(known[-1])}{unit}"
    )
    return out


def _band(run: Curves, view: View) -> list[Figure]:
    """mean ± spread as an area, where both are known: Plotly cannot fill across gaps."""
    rows = [
        row
        for row in run.steps
        if is_number(row.get("reward_mean")) and is_number(row.get("reward_std"))
    ]
    if len(rows) < 2:
        return []
    axis = Axis(run.steps, view.x)
    means = smoothed([row["reward_mean"] for row in rows], view.smoothing)
    spreads = smoothed([row["reward_std"] for row in rows], view.smoothing)
    pairs = [
        (mean, spread)
        for mean, spread in zip(means, spreads, strict=True)
        if mean is not None and spread is not None
    ]
    edge = {
        "type": "scatter",
        "mode": "lines",
        "x": [axis.at(row["step"]) for row in rows],
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    low = {**edge, "name": "mean − spread", "y": [rounded(m - s) for m, s in pairs]}
    high = {
        **edge,
        "name": "mean + spread",
        "y": [rounded(m + s) for m, s in pairs],
        "fill": "tonexty",
        "fillcolor": "--accent-band",
    }
    return [low, high]


FIGURES: dict[str, Callable[[Sequence[Curves], View], Figure]] = {
    "reward": reward,
    "compared reward": partial(metric, "reward_mean"),
    "kl": kl,
    "loss": partial(metric, "loss"),
    "length": partial(metric, "completion_tokens_mean"),
    "criteria": criteria,
    "detail": detail,
    "heldout": heldout,
}
