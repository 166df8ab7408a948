"""How the verdicts of groups change over the steps: stacked shares."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import VerdictCounts
from ui.render.charts.curves import View, rounded
from ui.render.charts.frame import Figure, definition, empty_figure, safe
from ui.render.verdicts import MEANINGS

# Stacked from the bottom up: groups that teach, groups that mislead, groups that teach nothing.
VERDICT_COLOURS = {
    "healthy": "--v-healthy",
    "graded": "--v-healthy",
    "polish": "--v-polish",
    "dominated": "--v-dominated",
    "no_call": "--v-no-call",
    "disagrees": "--v-disagrees",
    "phantom": "--v-phantom",
    "truncated": "--v-truncated",
    "unscored": "--v-unscored",
    "gated": "--v-gated",
    "tied": "--v-tied",
    "all_wrong": "--v-all-wrong",
    "all_right": "--v-all-right",
}


def verdicts(series: Sequence[VerdictCounts], key: str) -> Figure:
    """Each verdict's share of the groups, stacked. A click opens the steps of the point.

    series: counts of consecutive ranges of steps. key: the run, so that zoom belongs to it.
    """
    out = empty_figure("Verdicts", (), View())
    out["key"] = f"{key}|verdicts"
    out["empty"] = "Appears when the first step has been scored"
    if not series:
        return out
    codes = [code for code in VERDICT_COLOURS if any(s.counts.get(code) for s in series)]
    for code in codes:
        label, colour = VERDICTS[code][0], VERDICT_COLOURS[code]
        out["traces"].append(_area(series, code, safe(label), colour))
        entry = {"name": label, "colour": colour, "dash": "area", "title": MEANINGS[code]}
        out["legend"].append(entry)
    if len(series) == 1:
        _show_one_column(out, series[0].first)
    out["layout"]["yaxis"] = {"range": [0, 1.03], "tickformat": ".0%", "tickvals": [0, 0.5, 1]}
    num_steps = series[0].last - series[0].first + 1
    groups = "each step's groups" if num_steps == 1 else f"the groups of {num_steps} steps"
    out["definition"] = definition("verdict")
    out["note"] = f"Share of {groups}. Click a point to see its groups."
    totals = {code: sum(s.counts.get(code, 0) for s in series) for code in codes}
    out["spoken"] = "Verdicts over the steps: " + ", ".join(
        f"{VERDICTS[code][0]} {total:,}" for code, total in totals.items()
    )
    return out


def _show_one_column(out: Figure, step: int) -> None:
    """Draw stacked bars: an area between fewer than two points has no width."""
    for trace in out["traces"]:
        trace.update({"type": "bar", "width": [0.5], "marker": {"color": trace["fillcolor"]}})
    out["layout"]["barmode"] = "stack"
    out["layout"]["xaxis"] |= {"range": [step - 1, step + 1], "dtick": 1}


def _area(series: Sequence[VerdictCounts], code: str, name: str, colour: str) -> Figure:
    pairs = [(s.counts.get(code, 0), sum(s.counts.values())) for s in series]
    return {
        "type": "scatter",
        "mode": "lines",
        "stackgroup": "all",
        "name": name,
        "x": [s.first for s in series],
        "y": [rounded(n / total) for n, total in pairs],
        "customdata": [s.first for s in series],
        "text": [f"{n} of {total}" for n, total in pairs],
        "hovertemplate": "%{text}",
        "line": {"width": 0.5, "color": colour},
        "fillcolor": colour,
    }
