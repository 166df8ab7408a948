"""The Runs tab: all runs in a table, what can be done with the selected ones, and a comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui.components.html_panel import QUIET, data_of, html_panel, script, typing
from ui.components.live_chart import live_chart
from ui.render import charts
from ui.render.run_table import RUN_COLUMNS, RUN_SORTS
from ui.render.text import esc
from ui.server.calls import slow
from ui.server.refresh import RefreshEvents
from ui.server.service import Service
from ui.server.views import Runs, Views
from ui.tabs.exports import export_run
from ui.tabs.frame import SKIP, Frame, Tab, components_of, hidden_values, together
from ui.tabs.reward_models import build_reward_models
from ui.tabs.run_actions import (
    MAX_NAME,
    MAX_NOTE,
    copy_settings,
    describe_run,
    read_selected,
    resume_run,
)
from ui.tabs.run_dialogs import Around, Dialogs, build_dialogs, wire_dialogs
from ui.tabs.run_import import ImportBox, build_import, build_open, wire_import
from ui.tabs.run_list import COMPARED, FIRST_SORT, RunsInputs, ShowRuns
from ui.tabs.setup import Setup

# Columns of words sort from A first; columns of numbers from the largest first.
WORDS = [key for key in RUN_SORTS if not RUN_COLUMNS[key].numeric]
BAR = ("open", "resume", "branch", "copy", "compare", "export", "push", "delete", "clear")
# A hidden heading has no place to scroll to yet: wait until the comparison is shown.
COMPARE_JS = """() => requestAnimationFrame(() => {
  const heading = document.querySelector('#compare h2');
  heading?.focus({preventScroll: true});
  heading?.scrollIntoView({block: 'start'});
})"""


@dataclass(frozen=True, slots=True)
class _Compare:
    box: gr.Column
    heading: gr.HTML
    figures: list[gr.HTML]  # in the order of COMPARED
    results: gr.HTML
    differences: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """In the order in which ShowRuns fills them."""
        return [self.box, self.heading, *self.figures, self.results, self.differences]


@dataclass(frozen=True, slots=True)
class _RunsBox:
    search: gr.Textbox
    bar: gr.HTML
    message: gr.HTML
    dialogs: Dialogs
    table: gr.HTML
    editor: gr.HTML
    file: gr.DownloadButton  # hidden
    importing: ImportBox


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What the tab needs of the page around it."""

    tabs: gr.Tabs
    setup: Setup


def build_runs(
    frame: Frame, views: Views, neighbours: Neighbours, runs: Runs, service: Service
) -> Tab:
    """Build the tab and connect its events. Call it inside gr.Blocks."""
    box = _build_box()
    compare = _build_compare()
    selected, sort, seen = hidden_values(
        "state-runs-", selected="[]", sort=json.dumps(FIRST_SORT), seen="{}"
    )
    inputs = components_of(
        RunsInputs(
            run=frame.run,
            tab=frame.tab,
            search=box.search,
            selected=selected,
            sort=sort,
            seen=seen,
        )
    )
    outputs = [box.table, box.bar, *box.dialogs.boxes, *compare.outputs, seen]
    show = ShowRuns(views, service.may_push)
    refresh = frame.refresh.events("runs", show, inputs, outputs)
    _wire_table(box, selected, sort, refresh)
    in_view = [frame.run, neighbours.tabs, frame.tab]
    _wire_open(box, views, selected, in_view)
    _wire_bar(box, views, runs, selected, refresh)
    around = Around(box.bar, box.message, selected, in_view, refresh)
    wire_dialogs(box.dialogs, around, views, runs, service)
    _wire_export(box, views, service, selected)
    wire_import(box.importing, service, refresh)
    filled = [*neighbours.setup.filled, frame.notice]

    def copy(chosen: Any) -> list[Any]:
        return copy_settings(views, chosen)

    box.bar.copy(copy, selected, filled, **QUIET)
    models = build_reward_models(frame, views, neighbours.setup, service)
    return together(Tab(inputs, outputs, show), models)


# ---- layout ----------------------------------------------------------------------------------


def _build_box() -> _RunsBox:
    with gr.Column(elem_id="runs-box", elem_classes="card-box stack", min_width=0):
        with gr.Row(elem_id="runs-tools"):
            search = gr.Textbox(
                label="Search runs",
                placeholder="Search names, tags, notes, settings",
                show_label=False,
                max_lines=1,
                elem_id="search-runs",
                interactive=True,
                scale=1,
                min_width=160,
            )
            html_panel(_columns(), script=script("run_columns.js"), elem_id="run-columns-box")
            opens = build_open()
        importing = build_import(opens)
        with gr.Column(elem_id="run-head", min_width=0):
            bar = html_panel(events=BAR, script=script("run_bar.js"), elem_id="run-bar")
            message = html_panel(elem_id="runs-message")
        return _RunsBox(
            search=search,
            bar=bar,
            message=message,
            dialogs=build_dialogs(),
            table=html_panel(
                events=("select", "open", "sort", "tag"),
                script=script("run_table.js"),
                elem_id="run-table",
            ),
            editor=html_panel(_EDITOR, script=script("run_editor.js"), elem_id="run-editor-box"),
            file=gr.DownloadButton("File", visible="hidden", elem_id="export-file"),
            importing=importing,
        )


def _columns() -> str:
    """A button that opens the choice of columns; run_columns.js reads it."""
    boxes = "".join(
        f'<label><input type="checkbox" value="{key}" checked> {esc(column.title)}</label>'
        for key, column in RUN_COLUMNS.items()
        if key != "name"
    )
    return (
        '<button type="button" class="quiet" popovertarget="run-columns">Columns</button>'
        '<div id="run-columns" class="menu" popover role="group" aria-label="Columns">'
        f"{boxes}</div><style></style>"
    )


# run_editor.js fills it, moves it over the run's name and sends what was typed.
_EDITOR = f"""<form id="run-editor" class="menu" popover aria-label="Name, tags and note">
<label>Name <input name="name" required maxlength="{MAX_NAME}" autocomplete="off"></label>
<label>Tags <input name="tags" maxlength="500" autocomplete="off"
placeholder="baseline, keep"></label>
<label>Note <textarea name="note" rows="3" maxlength="{MAX_NOTE}"></textarea></label>
<input type="hidden" name="run"><div class="tools">
<button type="submit" class="quiet">Save</button>
<button type="button" class="quiet" popovertarget="run-editor"
popovertargetaction="hide">Cancel</button></div></form>"""


def _build_compare() -> _Compare:
    with gr.Column(visible=False, elem_id="compare", elem_classes="stack", min_width=0) as box:
        heading = html_panel(elem_id="compare-heading")
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
            html_panel("<h3>Held-out accuracy</h3>")
            results = html_panel(elem_id="results")
        with gr.Column(elem_classes="card-box", min_width=0):
            html_panel("<h3>Where their settings differ</h3>")
            differences = html_panel(elem_id="differences")
    return _Compare(box, heading, figures, results, differences)


# ---- events ----------------------------------------------------------------------------------


def _wire_table(
    box: _RunsBox, selected: gr.Textbox, sort: gr.Textbox, refresh: RefreshEvents
) -> None:
    table = box.table
    refresh.on(typing(box.search), trigger_mode="always_last")
    toggle = "selected => [studioToggle(selected, studioPressed.run), '']"
    refresh.after(table.select(None, selected, [selected, box.message], js=toggle, **QUIET))
    none = "() => ['[]', '']"
    refresh.after(box.bar.clear(None, None, [selected, box.message], js=none, **QUIET))
    sort_js = f"sort => studioSort(sort, {json.dumps(WORDS)})"
    refresh.after(table.sort(None, sort, sort, js=sort_js, **QUIET))
    table.tag(None, None, box.search, js="() => `#${studioPressed.tag}`", **QUIET)


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
    box.importing.result.open(open_row, None, in_view, **QUIET)
    box.bar.open(open_selected, selected, in_view, **QUIET)


def _wire_bar(
    box: _RunsBox, views: Views, runs: Runs, selected: gr.Textbox, refresh: RefreshEvents
) -> None:
    """Resume, compare, and what a person writes about a run."""

    def describe(event: gr.EventData) -> str:
        return describe_run(views, data_of(event))

    refresh.after(box.editor.save(describe, None, box.message, **QUIET))
    resume = partial(resume_run, runs, views)
    refresh.after(box.bar.resume(resume, selected, box.message, **QUIET))
    box.bar.compare(None, None, None, js=COMPARE_JS)


def _wire_export(box: _RunsBox, views: Views, service: Service, selected: gr.Textbox) -> None:
    def export(chosen: Any, event: gr.EventData) -> list[Any]:
        return export_run(views, service, data_of(event).get("kind"), chosen)

    download = "(file) => { if (file) document.querySelector('#export-file').click(); }"
    box.bar.export(slow(export), selected, [box.file, box.message], **QUIET).success(
        None, box.file, None, js=download
    )
