"""What the Runs tab shows: the table, what the selected runs offer, and those runs compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from grpo_core.analysis import heldout
from grpo_core.config import flatten, parse
from grpo_core.errors import InvalidConfig
from grpo_core.store import RunRow
from ui.render import charts, comparison, status
from ui.render.charts.frame import DASHES
from ui.render.run_bar import run_bar
from ui.render.run_table import run_table, run_values, words_of
from ui.render.tables import Sort
from ui.render.text import count
from ui.server.views import Views
from ui.tabs.foreign_settings import known_settings
from ui.tabs.frame import SKIP, parse_tokens, token
from ui.tabs.run_actions import read_selected, read_sort
from ui.tabs.run_offers import offers

COMPARED = ("compared reward", "heldout", "kl")  # the curves of the selected runs
SMOOTHING = {"compared reward": 0.6}
FIRST_SORT = {"key": "created", "descending": True}
NUM_DIALOGS = 3
NUM_COMPARE = 2 + len(COMPARED) + 2  # the box and its heading, the curves, the two tables
NUM_OUTPUTS = 2 + NUM_DIALOGS + NUM_COMPARE + 1  # as build_runs lists them


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
    sort: Sort


class ShowRuns:
    """Fills every output that is out of date and skips the rest, as ShowTrain does."""

    def __init__(self, views: Views, may_push: bool = True):
        self.views, self.may_push = views, may_push

    def __call__(self, *values: Any) -> list[Any]:
        given = RunsInputs(*values)
        if given.tab != "runs":
            return [SKIP] * NUM_OUTPUTS
        views, was = self.views, parse_tokens(given.seen)
        runs, search = views.runs(), str(given.search or "")
        selected, sort = read_selected(views, given.selected), read_sort(given.sort)
        chosen = [r for run_id in selected if (r := views.run(run_id))]
        listed = search_runs(runs, search)
        num_hidden = len(set(selected) - {run.id for run in listed})
        saved = [bool(views.store.checkpoints(r.id)) for r in chosen]
        parts = {
            "table": [given.run, [(r.id, r.revision) for r in runs], search, selected, sort],
            "bar": [num_hidden, saved, [(r.id, views.label(r), r.status) for r in chosen]],
            "dialogs": selected,
            "compare": [views.curves_key(r) for r in chosen],
        }
        now = {key: token(value) for key, value in parts.items()}
        new = {key for key in now if now[key] != was.get(key)}
        table, bar, dialogs, compare = SKIP, SKIP, [SKIP] * NUM_DIALOGS, [SKIP] * NUM_COMPARE
        if "table" in new:
            table = show_table(runs, listed, TableView(selected, given.run, sort))
        if "bar" in new:
            bar = run_bar(offers(views, chosen, num_hidden, self.may_push))
        if "dialogs" in new:  # they ask about the runs that were selected before
            dialogs = [gr.update(visible=False)] * NUM_DIALOGS
        if "compare" in new:
            compare = self._compare(chosen)
        return [table, bar, *dialogs, *compare, json.dumps(now)]

    def _compare(self, chosen: Sequence[RunRow]) -> list[Any]:
        """The box, its heading, curves and tables; hidden below two runs."""
        if len(chosen) < 2:
            return [gr.update(visible=False), *[SKIP] * (NUM_COMPARE - 1)]
        run_ids = [r.id for r in chosen]
        figures = [
            self.views.figure(name, run_ids, charts.View(smoothing=SMOOTHING.get(name, 0)))
            for name in COMPARED
        ]
        heading = f"<h2 tabindex='-1'>{count(len(chosen), 'run')} compared</h2>"
        if len(chosen) > len(DASHES):
            heading += f'<p class="note">The curves show the first {len(DASHES)} of them.</p>'
        return [
            gr.update(visible=True),
            heading,
            *figures,
            comparison.results(results(self.views, chosen)),
            comparison.differences(
                settings(self.views, chosen), [self.views.run_colour(r.id) for r in chosen]
            ),
        ]


def search_runs(runs: Sequence[RunRow], search: str) -> list[RunRow]:
    """The runs that contain every word of the search in what is said about them."""
    words = search.casefold().split()
    if not words:
        return list(runs)
    said = [(run, words_of(run)) for run in runs]
    return [run for run, text in said if all(word in text for word in words)]


def show_table(runs: Sequence[RunRow], listed: Sequence[RunRow], view: TableView) -> str:
    """The table of the runs that match, or what to do when there is none."""
    if not runs:
        return status.empty(
            "Your runs appear here",
            "With their reward, held-out accuracy and settings. Start one on the Train tab.",
        )
    if not listed:
        return status.empty("No run matches", "Empty the search box.")
    sort = view.sort
    values = {r.id: run_values(r)[sort.key] for r in listed}
    known = [r for r in listed if values[r.id] is not None]
    unknown = [r for r in listed if values[r.id] is None]
    known.sort(key=lambda r: values[r.id], reverse=sort.descending)
    return run_table([*known, *unknown], view.selected, view.in_view, sort)


def results(views: Views, runs: Sequence[RunRow]) -> list[comparison.Result]:
    """The held-out results of the runs, each compared with the first one."""
    first, *others = runs
    base = heldout.heldout(views.store, first.id)
    out = [comparison.Result(views.label(first), views.run_colour(first.id), base)]
    for run in others:
        result = heldout.heldout(views.store, run.id)
        row = comparison.Result(views.label(run), views.run_colour(run.id), result)
        if base.after is None or result.after is None:
            out.append(replace(row, why_not="no evaluation after training"))
        elif not heldout.same_prompts(first, run):
            out.append(replace(row, why_not="other held-out prompts"))
        elif (difference := heldout.unpaired(base.after, result.after)) is None:
            out.append(replace(row, why_not="no interval was recorded"))
        else:
            answers = [heldout.answers(views.store, r) for r in (first, run)]
            paired = heldout.paired(*answers)
            out.append(replace(row, difference=difference, paired=paired))
    return out


def settings(views: Views, runs: Sequence[RunRow]) -> dict[str, dict[str, Any]]:
    """Label of a run -> its dotted settings.

    A configuration of another version is shown as it was recorded; of another trainer's run only
    what its settings say.
    """
    out: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.source is not None:
            out[views.label(run)] = known_settings(run, run.source)
            continue
        try:
            flat = flatten(parse(run.config))
        except InvalidConfig:
            sections = {s: v for s, v in run.config.items() if isinstance(v, dict)}
            flat = {f"{s}.{name}": value for s, v in sections.items() for name, value in v.items()}
        out[views.label(run)] = flat
    return out
