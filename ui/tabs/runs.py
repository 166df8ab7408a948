"""The Runs tab: every run in a table; open, rename, delete, export, and compare the selected ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from grpo_core.config import flatten, parse
from grpo_core.errors import InvalidConfig
from grpo_core.store import RunRow
from grpo_core.types import RunStatus
from ui.components.html_panel import QUIET, data_of, html_panel, typing
from ui.components.live_chart import live_chart
from ui.render import charts, status, tables
from ui.server.service import Desk
from ui.server.views import Runs, Views
from ui.tabs.exports import EXPORTS, export_run, push_run
from ui.tabs.run_actions import (
    ask,
    ask_branch,
    branch_run,
    delete_runs,
    read_selected,
    read_sort,
    rename_run,
    resume_run,
)
from ui.tabs.train import SKIP, Frame, parse_tokens, token

WORDS = [
    "name",
    "status",
    "model",
    "task",
    "rubric",
    "algorithm",
]  # columns that start with A; the others start with their largest
COMPARED = ("compared reward", "heldout", "kl")


@dataclass(frozen=True)
class RunsTab:
    inputs: list[Any]
    outputs: list[Any]
    show: Any


def build_runs(frame: Frame, views: Views, tabs: gr.Tabs, runs: Runs, desk: Desk) -> RunsTab:
    """Lay the tab out and make it answer. Must be called inside gr.Blocks."""
    store = views.store
    with gr.Column(elem_id="runs-box", elem_classes="card-box stack", min_width=0):
        with gr.Row(elem_id="runs-tools"):
            search = gr.Textbox(
                label="Filter the list",
                placeholder="Name, model, task, status",
                show_label=False,
                max_lines=1,
                elem_id="search-runs",
                interactive=True,
                scale=1,
                min_width=160,
            )
            open_, resume, branch, delete = (
                gr.Button(n, interactive=False, size="sm", scale=0, min_width=72)
                for n in ("Open", "Resume", "Branch from step…", "Delete")
            )
            new_name = gr.Textbox(
                label="New name",
                placeholder="New name",
                show_label=False,
                max_lines=1,
                max_length=200,
                elem_id="new-name",
                interactive=True,
                scale=0,
                min_width=160,
            )
            rename = gr.Button("Rename", interactive=False, size="sm", scale=0, min_width=72)
            exports = [
                gr.Button(n, interactive=False, size="sm", scale=0, min_width=72) for n in EXPORTS
            ]
        if desk.may_push:
            with gr.Row(elem_id="push-row", elem_classes="control-row"):
                repository = gr.Textbox(
                    label="Repository on the Hub",
                    placeholder="owner/name, made private if it is new",
                    max_lines=1,
                    max_length=200,
                    elem_id="push-repository",
                    interactive=True,
                )
                push = gr.Button("Push model to Hub", size="sm", scale=0, min_width=140)
        message = html_panel(elem_id="runs-message")
        with gr.Row(visible=False, elem_id="confirm", elem_classes="banner warn") as confirm:
            question = html_panel(elem_id="confirm-question")
            sure = gr.Button("Delete for good", size="sm", variant="stop", scale=0, min_width=120)
            keep = gr.Button("Keep", size="sm", scale=0, min_width=72)
        with gr.Row(
            visible=False, elem_id="branch", elem_classes="banner warn control-row"
        ) as branching:
            from_step = gr.Dropdown(
                [],
                label="From step",
                filterable=False,
                elem_id="branch-step",
                interactive=True,
                scale=0,
                min_width=200,
            )
            changes = gr.Textbox(
                label="Changed settings",
                placeholder="train.learning_rate=1e-5 algorithm.kl_coef=0.1",
                max_lines=1,
                max_length=2000,
                elem_id="branch-changes",
                interactive=True,
            )
            begin = gr.Button("Start branch", size="sm", variant="primary", scale=0, min_width=110)
            leave = gr.Button("Cancel", size="sm", scale=0, min_width=72)
        table = html_panel(events=("select", "open", "sort"), elem_id="run-table")
        file = gr.DownloadButton("File", visible="hidden", elem_id="export-file")
    with gr.Column(visible=False, elem_id="compare", elem_classes="stack", min_width=0) as compare:
        html_panel("<h2>Selected runs</h2>")
        with gr.Row(elem_classes="curves"):
            figures = [
                live_chart(
                    charts.figure(n, [], charts.View()),
                    elem_id=f"compare-{n.split()[-1]}",
                    elem_classes="card-box",
                )
                for n in COMPARED
            ]
        with gr.Column(elem_classes="card-box", min_width=0):
            html_panel("<h3>Where their settings differ</h3>")
            differ = html_panel(elem_id="differences")
    selected, sort, seen = (
        gr.Textbox(v, visible="hidden", label=n, elem_id=f"state-runs-{n}")
        for n, v in (
            ("selected", "[]"),
            ("sort", json.dumps({"key": "created", "descending": True})),
            ("seen", "{}"),
        )
    )

    buttons = [open_, resume, branch, rename, delete, *exports]
    inputs = [frame.run, frame.tab, search, selected, sort, seen]
    outputs = [table, *buttons, compare, *figures, differ, seen]
    show = ShowRuns(views)
    fill = frame.shows.js("runs", show, inputs)

    def then_show(event: Any) -> None:
        event.then(None, inputs, outputs, js=fill, **QUIET)

    def view_run(run_id: Any) -> list[Any]:
        return (
            [views.picked(run_id), gr.update(selected="train"), "train"]
            if views.cursor(run_id)
            else [SKIP, SKIP, SKIP]
        )

    def open_row(event: gr.EventData) -> list[Any]:
        return view_run(data_of(event).get("run"))

    def open_selected(chosen: Any) -> list[Any]:
        return view_run(next(iter(read_selected(views, chosen)), None))

    in_view = [frame.run, tabs, frame.tab]
    typing(search)(None, inputs, outputs, js=fill, **(QUIET | {"trigger_mode": "always_last"}))
    then_show(
        table.select(
            None,
            selected,
            selected,
            js="selected => studioToggle(selected, studioPressed.run)",
            **QUIET,
        )
    )
    then_show(
        table.sort(None, sort, sort, js=f"sort => studioSort(sort, {json.dumps(WORDS)})", **QUIET)
    )
    table.open(open_row, None, in_view, **QUIET)
    open_.click(open_selected, selected, in_view, **QUIET)
    then_show(resume.click(partial(resume_run, runs, views), selected, message, **QUIET))
    branch.click(partial(ask_branch, views), selected, [from_step, branching, message], **QUIET)
    leave.click(lambda: gr.update(visible=False), None, branching, **QUIET)
    begin.click(
        partial(branch_run, runs, views),
        [selected, from_step, changes],
        [*in_view, branching, message],
        **QUIET,
    )
    for event in (rename.click, new_name.submit):
        then_show(
            event(partial(rename_run, views), [selected, new_name], [message, new_name], **QUIET)
        )
    delete.click(partial(ask, views), selected, [question, confirm, message], **QUIET)
    keep.click(lambda: gr.update(visible=False), None, confirm, **QUIET)
    then_show(
        sure.click(partial(delete_runs, views), selected, [message, confirm, selected], **QUIET)
    )
    for button, name in zip(exports, EXPORTS, strict=True):
        button.click(
            partial(export_run, views, store, desk, name), selected, [file, message], **QUIET
        ).success(
            None,
            file,
            None,
            js="(file) => { if (file) document.querySelector('#export-file').click(); }",
        )
    if desk.may_push:
        push.click(partial(push_run, views, desk), [repository, selected], message, **QUIET)
    return RunsTab(inputs, outputs, show)


# ---- what is shown ---------------------------------------------------------------------------------------------------


class ShowRuns:
    """Fills what is out of date, as train.Show does."""

    def __init__(self, views: Views):
        self.views = views

    def __call__(
        self, run_id: Any, tab: Any, search: Any, selected: Any, sort: Any, seen: Any
    ) -> list[Any]:
        views, was = self.views, parse_tokens(seen)
        if tab != "runs":
            return [SKIP] * (
                9 + len(EXPORTS) + len(COMPARED)
            )  # table, five buttons, compare, differences, seen; exports; curves
        runs, chosen, order = views.runs(), read_selected(views, selected), read_sort(sort)
        picked = [r for i in chosen if (r := views.run(i))]
        tokens = {
            "table": token(
                [run_id, [(r.id, r.revision) for r in runs], str(search or ""), chosen, order]
            ),
            "tools": token([chosen, [(r.status, r.steps_done) for r in picked]]),
            "compare": token([views.curves_key(r) for r in picked]),
        }
        tools, compare = (
            tokens["tools"] != was.get("tools"),
            tokens["compare"] != was.get("compare"),
        )
        several = len(picked) >= 2
        one = len(picked) == 1
        again = one and picked[0].status in (
            RunStatus.PAUSED,
            RunStatus.STOPPED,
            RunStatus.FAILED,
            RunStatus.INTERRUPTED,
        )
        enabled = [
            one,
            again,
            one and bool(views.store.checkpoints(picked[0].id)),
            one,
            bool(picked) and not any(r.status.is_live for r in picked),
            *[len(picked) == 1] * len(EXPORTS),
        ]
        return [
            run_list(runs, str(search or ""), chosen, run_id, order)
            if tokens["table"] != was.get("table")
            else SKIP,
            *(gr.update(interactive=on) if tools else SKIP for on in enabled),
            gr.update(visible=several) if compare else SKIP,
            *(
                views.figure(n, chosen, charts.View(smoothing=0.6 if n == "compared reward" else 0))
                if compare and several
                else SKIP
                for n in COMPARED
            ),
            tables.differences(settings(views, picked)) if compare and several else SKIP,
            json.dumps(tokens),
        ]


def run_list(
    runs: Sequence[RunRow], search: str, chosen: Sequence[str], in_view: Any, order: dict[str, Any]
) -> str:
    if not runs:
        return status.empty(
            "Your runs appear here",
            "With their reward, held-out accuracy and settings. Start one on the Train tab.",
        )
    wanted = search.casefold().strip()
    found = [
        r
        for r in runs
        if wanted
        in f"{r.name} {r.model} {r.task} {r.rubric} {tables.algorithm_of(r)} {r.status}".casefold()
    ]
    if not found:
        return status.empty("No run matches", "Empty the search box.")
    values = {r.id: tables.run_values(r)[order["key"]] for r in found}
    known = sorted(
        (r for r in found if values[r.id] is not None),
        key=lambda r: values[r.id],
        reverse=order["descending"],
    )
    return tables.run_table(
        [*known, *(r for r in found if values[r.id] is None)],
        chosen,
        in_view,
        order["key"],
        order["descending"],
    )


def settings(views: Views, runs: Sequence[RunRow]) -> dict[str, dict[str, Any]]:
    """Label of a run -> its dotted settings. A configuration of another version is shown as it was recorded."""
    out: dict[str, dict[str, Any]] = {}
    for run in runs:
        try:
            out[views.label(run)] = flatten(parse(run.config))
        except InvalidConfig:
            out[views.label(run)] = {
                f"{s}.{k}": v
                for s, values in run.config.items()
                if isinstance(values, dict)
                for k, v in values.items()
            }
    return out
