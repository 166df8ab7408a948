"""What the Runs tab shows: the table, which buttons are enabled, and the selected runs compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.config import flatten, parse
from grpo_core.errors import InvalidConfig
from grpo_core.store import RunRow
from grpo_core.types import RunStatus
from ui.render import charts, status, tables
from ui.server.views import Views
from ui.tabs.exports import EXPORTS
from ui.tabs.frame import SKIP, parse_tokens, token
from ui.tabs.run_actions import read_selected, read_sort

COMPARED = ("compared reward", "heldout", "kl")  # the curves of the selected runs
SMOOTHING = {"compared reward": 0.6}
FIRST_SORT = {"key": "created", "descending": True}
NUM_BUTTONS = 5 + len(EXPORTS)
NUM_OUTPUTS = 1 + NUM_BUTTONS + 1 + len(COMPARED) + 2  # as build_runs lists them
RESUMABLE = (RunStatus.PAUSED, RunStatus.STOPPED, RunStatus.FAILED, RunStatus.INTERRUPTED)


@dataclass(frozen=True, slots=True)
class RunsInputs:
    """The tab's inputs: components on the page, in a request their values."""

    run: Any
    tab: Any
    search: Any
    selected: Any
    sort: Any
    seen: Any


@dataclass(frozen=True, slots=True)
class TableView:
    """How the table of runs is shown."""

    selected: Sequence[str]
    in_view: Any  # id of the run in view
    sort: tables.Sort


class ShowRuns:
    """Fills every output that is out of date and skips the rest, as ShowTrain does."""

    def __init__(self, views: Views):
        self.views = views

    def __call__(self, *values: Any) -> list[Any]:
        given = RunsInputs(*values)
        if given.tab != "runs":
            return [SKIP] * NUM_OUTPUTS
        views, was = self.views, parse_tokens(given.seen)
        runs, search = views.runs(), str(given.search or "")
        selected, sort = read_selected(views, given.selected), read_sort(given.sort)
        chosen = [r for run_id in selected if (r := views.run(run_id))]
        parts = {
            "table": [given.run, [(r.id, r.revision) for r in runs], search, selected, sort],
            "tools": [selected, [(r.status, r.steps_done) for r in chosen]],
            "compare": [views.curves_key(r) for r in chosen],
        }
        now = {key: token(value) for key, value in parts.items()}
        new = {key for key in now if now[key] != was.get(key)}
        table = SKIP
        if "table" in new:
            table = run_table(runs, search, TableView(selected, given.run, sort))
        buttons: list[Any] = [SKIP] * NUM_BUTTONS
        if "tools" in new:
            buttons = [gr.update(interactive=on) for on in self._enabled(chosen)]
        compare = self._compare(chosen) if "compare" in new else [SKIP] * (len(COMPARED) + 2)
        return [table, *buttons, *compare, json.dumps(now)]

    def _enabled(self, chosen: Sequence[RunRow]) -> list[bool]:
        """Which of open, resume, branch, rename, delete and the exports have an effect now."""
        one = chosen[0] if len(chosen) == 1 else None
        return [
            one is not None,
            one is not None and one.status in RESUMABLE,
            one is not None and bool(self.views.store.checkpoints(one.id)),
            one is not None,
            bool(chosen) and not any(r.status.is_live for r in chosen),
            *[one is not None] * len(EXPORTS),
        ]

    def _compare(self, chosen: Sequence[RunRow]) -> list[Any]:
        """The box, its curves and the differing settings; hidden below two runs."""
        if len(chosen) < 2:
            return [gr.update(visible=False), *[SKIP] * len(COMPARED), SKIP]
        run_ids = [r.id for r in chosen]
        figures = [
            self.views.figure(name, run_ids, charts.View(smoothing=SMOOTHING.get(name, 0)))
            for name in COMPARED
        ]
        differences = tables.differences(settings(self.views, chosen))
        return [gr.update(visible=True), *figures, differences]


def search_runs(runs: Sequence[RunRow], search: str) -> list[RunRow]:
    """The runs whose name, model, task, rubric, algorithm, status or device has the text."""
    text = search.casefold().strip()
    return [r for r in runs if text in _searched(r).casefold()]


def _searched(run: RunRow) -> str:
    algorithm = tables.algorithm_of(run)
    device = status.device_of(run)
    return f"{run.name} {run.model} {run.task} {run.rubric} {algorithm} {run.status} {device}"


def run_table(runs: Sequence[RunRow], search: str, view: TableView) -> str:
    """The table of the runs that match, or what to do when there is none."""
    if not runs:
        return status.empty(
            "Your runs appear here",
            "With their reward, held-out accuracy and settings. Start one on the Train tab.",
        )
    matching = search_runs(runs, search)
    if not matching:
        return status.empty("No run matches", "Empty the search box.")
    sort = view.sort
    values = {r.id: tables.run_values(r)[sort.key] for r in matching}
    known = [r for r in matching if values[r.id] is not None]
    unknown = [r for r in matching if values[r.id] is None]
    known.sort(key=lambda r: values[r.id], reverse=sort.descending)
    return tables.run_table([*known, *unknown], view.selected, view.in_view, sort)


def settings(views: Views, runs: Sequence[RunRow]) -> dict[str, dict[str, Any]]:
    """Label of a run -> its dotted settings.

    A configuration of another version is shown as it was recorded.
    """
    out: dict[str, dict[str, Any]] = {}
    for run in runs:
        try:
            flat = flatten(parse(run.config))
        except InvalidConfig:
            sections = {s: v for s, v in run.config.items() if isinstance(v, dict)}
            flat = {f"{s}.{name}": value for s, v in sections.items() for name, value in v.items()}
        out[views.label(run)] = flat
    return out
