"""The numbers of a curve: a run's rows as points on an x axis, thinned and smoothed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.store.downsample import min_max
from grpo_core.types import Intervention
from ui.render.text import is_number

DRAWN = 600  # points of a line; a curve is about 300 pixels wide

Points = tuple[list[float], list[float | None], list[int]]  # x, y, step


@dataclass(frozen=True, slots=True)
class Curves:
    """The data of one run.

    steps: rows of the table `steps` in order, each with its `step`.
    metrics: name of an open metric -> its (step, value) pairs.
    interventions: what people changed during the run.
    colour: the run's own, as the name of a CSS variable; empty: by its place in the chart.
    """

    run_id: str
    name: str
    steps: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Sequence[tuple[int, float | None]]]
    interventions: Sequence[Intervention] = ()
    colour: str = ""
    trainer: str = ""  # of a run that another trainer recorded


@dataclass(frozen=True, slots=True)
class View:
    """How curves are drawn.

    x: "step", "time" or "tokens". smoothing: weight of the exponential average, in [0, 1).
    log: logarithmic y axis. detail: which metric the last curve shows, a key of DETAILS.
    """

    x: str = "step"
    smoothing: float = 0.0
    log: bool = False
    detail: str = "entropy"


class Axis:
    """step -> x: the step, the seconds spent until its end, or the tokens sampled until then.

    The rows may be thinned. A row then counts for every step since the row before it.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], x: str):
        self._column = {"time": "step_seconds", "tokens": "tokens"}.get(x)
        self._steps = [0]
        self._xs = [0.0]
        for row in steps:
            gap = row["step"] - self._steps[-1]
            amount = float(row.get(self._column) or 0) if self._column else 0.0
            self._steps.append(row["step"])
            self._xs.append(self._xs[-1] + gap * amount)

    def at(self, step: int) -> float:
        if self._column is None:
            return float(step)
        return rounded(self._xs[max(0, bisect_right(self._steps, step) - 1)])


def smoothed(values: Sequence[float | None], weight: float) -> list[float | None]:
    """Exponential moving average with Adam's bias correction (arXiv:1412.6980, section 3).

        s_n = Σ_i w^(n−i)·(1−w)·v_i / (1 − w^n)

    None and nan stay gaps and do not count. Weight 0 returns the values.
    """
    out: list[float | None] = []
    mean, num_seen = 0.0, 0
    for value in values:
        if not is_number(value):
            out.append(None)
            continue
        num_seen += 1
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**num_seen))
    return out


def column_points(run: Curves, view: View, column: str) -> Points:
    """The points of one column of `steps`."""
    return _thinned(Axis(run.steps, view.x), [(row["step"], row.get(column)) for row in run.steps])


def metric_points(run: Curves, view: View, name: str) -> Points:
    """The points of one open metric."""
    return _thinned(Axis(run.steps, view.x), run.metrics[name])


def _thinned(axis: Axis, points: Sequence[tuple[int, Any]]) -> Points:
    """Some DRAWN points. Every stretch keeps its lowest and highest one, so no spike is lost."""
    points = min_max(points, [v if is_number(v) else None for _, v in points], DRAWN)
    return (
        [axis.at(step) for step, _ in points],
        [rounded(value) if is_number(value) else None for _, value in points],
        [step for step, _ in points],
    )


def rounded(value: float) -> float:
    """Five significant digits. More are invisible and would double the size of each refresh."""
    return float(f"{value:.5g}")
