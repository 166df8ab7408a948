"""The Runs tab: all runs in a table; open, rename, delete, export and compare the selected ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui.components.html_panel import QUIET, data_of, html_panel, typing
from ui.components.live_chart import live_chart
from ui.render import charts
from ui.server.calls import slow
from ui.server.refresh import RefreshEvents
from ui.server.service import Service
from ui.server.views import Runs, Views
from ui.tabs.exports import EXPORTS, export_run, push_run
from ui.tabs.frame import SKIP, Frame, Tab, components_of, hidden_values
from ui.tabs.run_actions import (
    ask_branch,
    ask_delete,
    branch_run,
    delete_runs,
    read_selected,
    rename_run,
    resume_run,
)
from ui.tabs.run_list import COMPARED, FIRST_SORT, RunsInputs, ShowRuns

# Columns of words sort from A first; columns of numbers from the largest first.
WORDS = ["name", "status", "model", "task", "rubric", "algorithm"]


@dataclass(frozen=True, slots=True)
class _Tools:
    search: gr.Textbox
    open: gr.Button
    resume: gr.Button
    branch: gr.Button
    delete: gr.Button
    new_name: gr.Textbox
    rename: gr.Button
    exports: list[gr.Button]  # in the order of EXPORTS

    @property
    def buttons(self) -> list[gr.Button]:
        """In the order in which ShowRuns enables them."""
        return [self.open, self.resume, self.branch, self.rename, self.delete, *self.exports]


@dataclass(frozen=True, slots=True)
class _Push:
    repository: gr.Textbox
    button: gr.Button


@dataclass(frozen=True, slots=True)
class _DeleteBox:
    """The question before runs are deleted."""

    box: gr.Row
    question: gr.HTML
    confirm: gr.Button
    cancel: gr.Button


@dataclass(frozen=True, slots=True)
class _BranchBox:
    box: gr.Row
    step: gr.Dropdown
    changes: gr.Textbox
    start: gr.Button
    cancel: gr.Button


@dataclass(frozen=True, slots=True)
class _Compare:
    box: gr.Column
    figures: list[gr.HTML]  # in the order of COMPARED
    differences: gr.HTML


@dataclass(frozen=True, slots=True)
class _RunsBox:
    tools: _Tools
    push: _Push | None  # where the server may push to the Hub
    message: gr.HTML
    delete: _DeleteBox
    branch: _BranchBox
    table: gr.HTML
    file: gr.DownloadButton  # hidden


def build_runs(frame: Frame, views: Views, tabs: gr.Tabs, runs: Runs, service: Service) -> Tab:
    """Build the tab and connect its events. Call it inside gr.Blocks."""
    box = _build_box(service.may_push)
    compare = _build_compare()
    selected, sort, seen = hidden_values(
        "state-runs-", selected="[]", sort=json.dumps(FIRST_SORT), seen="{}"
    )
    tools, table = box.tools, box.table
    inputs = components_of(
        RunsInputs(
            run=frame.run,
            tab=frame.tab,
            search=tools.search,
            selected=selected,
            sort=sort,
            seen=seen,
        )
    )
    outputs = [
        table,
        *tools.buttons,
        compare.box,
        *compare.figures,
        compare.differences,
        seen,
    ]
    show = ShowRuns(views)
    refresh = frame.refresh.events("runs", show, inputs, outputs)
    refresh.on(typing(tools.search), trigger_mode="always_last")
    toggle = "selected => studioToggle(selected, studioPressed.run)"
    refresh.after(table.select(None, selected, selected, js=toggle, **QUIET))
    sort_js = f"sort => studioSort(sort, {json.dumps(WORDS)})"
    refresh.after(table.sort(None, sort, sort, js=sort_js, **QUIET))
    in_view = [frame.run, tabs, frame.tab]
    _wire_open(box, views, selected, in_view)
    _wire_rename_and_delete(box, views, selected, refresh)
    refresh.after(
        tools.resume.click(partial(resume_run, runs, views), selected, box.message, **QUIET)
    )
    _wire_branch(box, runs, views, selected, in_view)
    _wire_exports(box, views, service, selected)
    return Tab(inputs, outputs, show)


# ---- layout ----------------------------------------------------------------------------------


def _small_button(label: str, min_width: int = 72, **options: Any) -> gr.Button:
    return gr.Button(label, size="sm", scale=0, min_width=min_width, **options)


def _build_box(may_push: bool) -> _RunsBox:
    with gr.Column(elem_id="runs-box", elem_classes="card-box stack", min_width=0):
        return _RunsBox(
            tools=_build_tools(),
            push=_build_push() if may_push else None,
            message=html_panel(elem_id="runs-message"),
            delete=_build_delete(),
            branch=_build_branch(),
            table=html_panel(events=("select", "open", "sort"), elem_id="run-table"),
            file=gr.DownloadButton("File", visible="hidden", elem_id="export-file"),
        )


def _build_tools() -> _Tools:
    with gr.Row(elem_id="runs-tools"):
        return _Tools(
            search=gr.Textbox(
                label="Filter the list",
                placeholder="Name, model, task, status",
                show_label=False,
                max_lines=1,
                elem_id="search-runs",
                interactive=True,
                scale=1,
                min_width=160,
            ),
            open=_small_button("Open", interactive=False),
            resume=_small_button("Resume", interactive=False),
            branch=_small_button("Branch from step…", interactive=False),
            delete=_small_button("Delete", interactive=False),
            new_name=gr.Textbox(
                label="New name",
                placeholder="New name",
                show_label=False,
                max_lines=1,
                max_length=200,
                elem_id="new-name",
                interactive=True,
                scale=0,
                min_width=160,
            ),
            rename=_small_button("Rename", interactive=False),
            exports=[_small_button(name, interactive=False) for name in EXPORTS],
        )


def _build_push() -> _Push:
    with gr.Row(elem_id="push-row", elem_classes="control-row"):
        return _Push(
            repository=gr.Textbox(
                label="Repository on the Hub",
                placeholder="owner/name, made private if it is new",
                max_lines=1,
                max_length=200,
                elem_id="push-repository",
                interactive=True,
            ),
            button=_small_button("Push model to Hub", min_width=140),
        )


def _build_delete() -> _DeleteBox:
    with gr.Row(visible=False, elem_id="confirm", elem_classes="banner warn") as box:
        return _DeleteBox(
            box,
            question=html_panel(elem_id="confirm-question"),
            confirm=_small_button("Delete for good", variant="stop", min_width=120),
            cancel=_small_button("Keep"),
        )


def _build_branch() -> _BranchBox:
    with gr.Row(visible=False, elem_id="branch", elem_classes="banner warn control-row") as box:
        return _BranchBox(
            box,
            step=gr.Dropdown(
                [],
                label="From step",
                filterable=False,
                elem_id="branch-step",
                interactive=True,
                scale=0,
                min_width=200,
            ),
            changes=gr.Textbox(
                label="Changed settings",
                placeholder="train.learning_rate=1e-5 algorithm.kl_coef=0.1",
                max_lines=1,
                max_length=2000,
                elem_id="branch-changes",
                interactive=True,
            ),
            start=_small_button("Start branch", variant="primary", min_width=110),
            cancel=_small_button("Cancel"),
        )


def _build_compare() -> _Compare:
    with gr.Column(visible=False, elem_id="compare", elem_classes="stack", min_width=0) as box:
        html_panel("<h2>Selected runs</h2>")
        with gr.Row(elem_classes="curves"):
            figures = [
                live_chart(
                    charts.figure(name, [], charts.View()),
                    elem_id=f"compare-{name.split()[-1]}",
                    elem_classes="card-box",
                )
                for name in COMPARED
            ]
        with gr.Column(elem_classes="card-box", min_width=0):
            html_panel("<h3>Where their settings differ</h3>")
            differences = html_panel(elem_id="differences")
    return _Compare(box, figures, differences)


# ---- events ----------------------------------------------------------------------------------


def _wire_open(box: _RunsBox, views: Views, selected: gr.Textbox, in_view: list[Any]) -> None:
    """Show a run on the Train tab. in_view: the run picker, the tabs, the name of the tab."""

    def show_run(run_id: Any) -> list[Any]:
        if views.cursor(run_id) is None:
            return [SKIP, SKIP, SKIP]
        return [views.picked(run_id), gr.update(selected="train"), "train"]

    def open_row(event: gr.EventData) -> list[Any]:
        return show_run(data_of(event).get("run"))

    def open_selected(chosen: Any) -> list[Any]:
        return show_run(next(iter(read_selected(views, chosen)), None))

    box.table.open(open_row, None, in_view, **QUIET)
    box.tools.open.click(open_selected, selected, in_view, **QUIET)


def _wire_rename_and_delete(
    box: _RunsBox, views: Views, selected: gr.Textbox, refresh: RefreshEvents
) -> None:
    tools, delete, message = box.tools, box.delete, box.message
    rename = partial(rename_run, views)
    for event in (tools.rename.click, tools.new_name.submit):
        refresh.after(event(rename, [selected, tools.new_name], [message, tools.new_name], **QUIET))
    question = [delete.question, delete.box, message]
    tools.delete.click(partial(ask_delete, views), selected, question, **QUIET)
    delete.cancel.click(_hide, None, delete.box, **QUIET)
    deleted = [message, delete.box, selected]
    refresh.after(delete.confirm.click(partial(delete_runs, views), selected, deleted, **QUIET))


def _wire_branch(
    box: _RunsBox, runs: Runs, views: Views, selected: gr.Textbox, in_view: list[Any]
) -> None:
    branch, message = box.branch, box.message
    question = [branch.step, branch.box, message]
    box.tools.branch.click(partial(ask_branch, views), selected, question, **QUIET)
    branch.cancel.click(_hide, None, branch.box, **QUIET)
    branch.start.click(
        partial(branch_run, runs, views),
        [selected, branch.step, branch.changes],
        [*in_view, branch.box, message],
        **QUIET,
    )


def _hide() -> dict[str, Any]:
    return gr.update(visible=False)


def _wire_exports(box: _RunsBox, views: Views, service: Service, selected: gr.Textbox) -> None:
    download = "(file) => { if (file) document.querySelector('#export-file').click(); }"
    for button, name in zip(box.tools.exports, EXPORTS, strict=True):
        export = slow(partial(export_run, views, service, name))
        button.click(export, selected, [box.file, box.message], **QUIET).success(
            None, box.file, None, js=download
        )
    if box.push is not None:
        push = slow(partial(push_run, views, service))
        box.push.button.click(push, [box.push.repository, selected], box.message, **QUIET)
