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
    colour_of,
    definition,
    each,
    empty_figure,
    faint,
    finish,
    line_traces,
    run_legend,
)
from ui.render.text import is_number, plain, short, shorten, visible

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
    "tool_error_frac",
    "sampler_kl",
)
# choice of the last curve -> its columns
SPREAD = "line:spread"  # what the legend switches off
DETAILS = {
    "entropy": ("entropy",),
    "clip": ("clip_low_frac", "clip_high_frac"),
    "gradient": ("grad_norm",),
    "sampler": ("sampler_kl",),
}


# The curves of runs in an environment, hidden for others.
OF_TURNS = ("turns_mean", "tool_calls_mean", "tool_error_frac", "observation_frac")


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
        style = LineStyle.of_run(runs, i)
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
            {"name": "mean", "colour": colour_of(runs, 0)},
            {
                "name": "± spread",
                "colour": faint(colour_of(runs, 0)),
                "dash": "area",
                "line": SPREAD,
            },
        ]
    add_accuracies(out, runs, view)
    return out


def kl(runs: Sequence[Curves], view: View) -> Figure:
    """KL to the reference. The note says whether it is in the loss, only measured, or neither."""
    out = metric("kl", runs, view)
    out["layout"]["yaxis"].setdefault("rangemode", "tozero")
    texts = [text for run in runs if (text := _kl_coefficient(run))]
    if texts == ["0 (not measured)"]:
        meaning = "Not measured: measure_kl is off."
    elif texts == ["0"]:
        meaning = "KL coefficient 0: measured, not trained on."
    else:
        meaning = f"KL coefficient {each(texts)}."
    out["note"] = f"{meaning} {out['note']}" if texts else out["note"]
    return out


def _kl_coefficient(run: Curves) -> str:
    """The last coefficient; empty before the first step."""
    coefs = [row["kl_coef"] for row in run.steps if is_number(row.get("kl_coef"))]
    if not coefs:
        return ""
    measured = coefs[-1] > 0 or any(is_number(row.get("kl")) for row in run.steps)
    return plain(coefs[-1]) + ("" if measured else " (not measured)")


def criteria(runs: Sequence[Curves], view: View) -> Figure:
    """Mean score of each criterion of the first run, before its weight."""
    out = empty_figure("Scores by criterion", runs, view)
    if runs:
        names = [name for name in runs[0].metrics if name.startswith("score/")]
        for i, name in enumerate(names[: len(COLOURS)]):
            label = name.removeprefix("score/")
            points = metric_points(runs[0], view, name)
            style = LineStyle(label, i, clickable=True, switch=f"line:{name}")
            out["traces"] += line_traces(view, points, style)
            out["legend"].append(_line_entry(style))
    of = f"Only “{shorten(visible(runs[0].name))}”. " if len(runs) > 1 else ""
    out["definition"] = definition("score/NAME")
    out["note"] = f"{of}Mean scores, before weights. {out['definition']['reading']}"
    out["layout"]["yaxis"] = {"range": [-0.03, 1.03], "tickvals": [0, 0.5, 1]}
    return finish(out, runs, view)


def detail(runs: Sequence[Curves], view: View) -> Figure:
    """The columns of DETAILS that `view.detail` names. Clipping: those of the first run."""
    columns = DETAILS.get(view.detail, DETAILS["entropy"])
    if len(columns) == 1:
        return metric(columns[0], runs, view)
    out = _described("clip_frac", runs[:1], view, columns[0])
    styles = {
        column: LineStyle(METRICS[column]["title"], i, clickable=True, switch=f"line:{column}")
        for i, column in enumerate(columns)
    }
    for run in runs[:1]:
        for column, style in styles.items():
            out["traces"] += line_traces(view, column_points(run, view, column), style)
    out = finish(out, runs[:1], view)
    if len(runs) > 1:
        out["note"] = f"Only “{shorten(visible(runs[0].name))}”. {out['note']}"
    out["legend"] = [_line_entry(style) for style in styles.values()]
    return out


def _line_entry(style: LineStyle) -> Figure:
    """A line's entry in the legend, which can be pressed to hide it."""
    i = style.index
    return {
        "name": visible(style.name),
        "colour": COLOURS[i],
        "dash": DASHES[i],
        "line": style.switch,
    }


def _described(name: str, runs: Sequence[Curves], view: View, column: str | None = None) -> Figure:
    """A figure without traces, with title, note and summary from a StepMetrics field's metadata.

    column: the column that the spoken summary reads, if it is not `name`.
    """
    meta = METRICS[name]
    column = column or name
    out = empty_figure(meta["title"], runs, view)
    out["note"] = meta["reading"]
    out["definition"] = definition(name)
    out["legend"] = run_legend(runs, column) if len(runs) > 1 else []
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
        "legendgroup": SPREAD,
        "hoverinfo": "skip",
        "showlegend": False,
    }
    low = {**edge, "name": "mean − spread", "y": [rounded(m - s) for m, s in pairs]}
    high = {
        **edge,
        "name": "mean + spread",
        "y": [rounded(m + s) for m, s in pairs],
        "fill": "tonexty",
        "fillcolor": faint(colour_of([run], 0)),
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
    **{column: partial(metric, column) for column in OF_TURNS},
}
