"""The Inspect tab: every group of a run in a table, searched and filtered, and one group open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.store import export
from ui.components.html_panel import QUIET, data_of, html_panel, script, typing
from ui.components.live_chart import live_chart
from ui.render import charts, status
from ui.server import group_ref
from ui.server.calls import slow
from ui.server.quick_scorer import QuickScorer
from ui.server.refresh import RefreshEvents
from ui.server.service import Service
from ui.server.views import Views
from ui.tabs.exports import export_folder, file_name
from ui.tabs.frame import SKIP, Frame, Tab, components_of, hidden_values
from ui.tabs.inspect_filters import (
    FIRST,
    MAX_SEARCH_CHARS,
    ListQuery,
    change_filters,
    read_bound,
    read_filters,
    wanted,
)
from ui.tabs.inspect_group import (
    GroupInputs,
    GroupSide,
    ShowGroup,
    build_group,
    use_in_new_run,
    wire_group,
)
from ui.tabs.inspect_list import PAGE, ShowList
from ui.tabs.pairs import build_mode, build_pairs
from ui.tabs.setup import Setup

NUM_OUTPUTS = 11  # as build_inspect lists them


@dataclass(frozen=True)
class Inspect(Tab):
    """The Inspect tab, with the parts of it that other parts of the page set."""

    group: gr.Textbox  # hidden: the open group, "37/2"; empty: that of the first row
    look: gr.Radio  # the view of the group
    options: gr.Textbox  # hidden: what the controls of the views say
    mode: gr.Radio  # groups with their rewards, or answers to judge
    restore: Mapping[str, Any]  # arguments of the page's load event


@dataclass(frozen=True, slots=True)
class InspectInputs:
    """The tab's inputs: components on the page, in a request their values."""

    run: Any
    tab: Any
    search: Any
    low: Any
    high: Any
    filters: Any
    opened: Any
    seen: Any
    view: Any
    order: Any
    options: Any
    group_seen: Any


@dataclass(frozen=True, slots=True)
class _List:
    mode: gr.Radio
    search: gr.Textbox
    chips: gr.HTML
    over_time: gr.HTML  # verdicts over the steps
    low: gr.Textbox
    high: gr.Textbox
    bounds: gr.HTML  # on completions
    file: gr.DownloadButton  # hidden
    newer: gr.HTML
    table: gr.HTML


def build_inspect(
    frame: Frame, views: Views, setup: Setup, tabs: gr.Tabs, service: Service
) -> Inspect:
    """Build the tab and connect its events. Call it inside gr.Blocks."""
    mode = build_mode()
    pairs = build_pairs(frame, views, mode, QuickScorer(views, service))
    with gr.Row(elem_id="inspect-row", equal_height=False):
        listed = _build_list()
        filters, at, seen = hidden_values(
            "state-inspect-", filters=json.dumps(FIRST), at="", seen="{}"
        )
        side = build_group()
    inputs = components_of(
        InspectInputs(
            run=frame.run,
            tab=frame.tab,
            search=listed.search,
            low=listed.low,
            high=listed.high,
            filters=filters,
            opened=side.opened,
            seen=seen,
            view=side.inputs.view,
            order=side.inputs.order,
            options=side.inputs.options,
            group_seen=side.inputs.seen,
        )
    )
    outputs = [
        listed.chips,
        listed.over_time,
        listed.bounds,
        listed.table,
        listed.newer,
        at,
        seen,
        side.head,
        side.controls,
        side.body,
        side.inputs.seen,
    ]
    show = ShowInspect(views)
    refresh = frame.refresh.events("inspect", slow(show), inputs, outputs)
    _wire_export(listed, frame, views, filters)
    _wire_filters(listed, filters, refresh)

    # Gradio passes the event to a parameter of this annotation; a partial function has none.
    def pick_step(text: Any, run_id: Any, event: gr.EventData) -> str:
        return choose_steps(views, text, run_id, event)

    refresh.after(listed.over_time.pick(pick_step, [filters, frame.run], filters, **QUIET))
    opened = side.opened
    refresh.after(listed.table.open(None, None, opened, js="() => studioOpenRow()", **QUIET))
    wire_group(side, at, refresh)
    _wire_use(side, frame, views, setup, tabs)
    # Another run: forget the chosen group and steps, unless the address names them.
    anew = frame.run.change(
        None,
        frame.run,
        [opened, filters],
        js=f"run => studioAnew(run, ['', JSON.stringify({json.dumps(FIRST)})])",
        **QUIET,
    )
    refresh.on_change(anew.then)

    def show_all(*values: Any) -> list[Any]:
        return [*show(*values[: len(inputs)]), *pairs.show(*values[len(inputs) :])]

    both = [*inputs, *pairs.inputs], [*outputs, *pairs.outputs]
    set_by_others = opened, side.inputs.view, side.inputs.options, mode
    return Inspect(*both, show_all, *set_by_others, pairs.restore)


# ---- layout ----------------------------------------------------------------------------------


def _build_list() -> _List:
    with gr.Column(elem_id="groups", elem_classes="card-box stack", scale=0, min_width=320):
        mode = gr.Radio(
            [("Groups", "groups"), ("Completions", "rollouts")],
            value="groups",
            label="List",
            show_label=False,
            elem_id="list-mode",
            interactive=True,
        )
        search = gr.Textbox(
            label="Search completions",
            placeholder="Text in any prompt, completion or tool call",
            max_lines=1,
            elem_id="search",
            show_label=False,
            interactive=True,
        )
        chips = html_panel(events=("verdict", "allsteps"), elem_id="chips")
        over_time = live_chart(charts.verdicts([], ""), elem_id="verdicts-over-time")
        with gr.Row(elem_id="reward-range"):
            low = gr.Textbox(
                "", label="Mean reward from", max_lines=1, elem_id="reward-from", interactive=True
            )
            high = gr.Textbox("", label="to", max_lines=1, elem_id="reward-to", interactive=True)
        return _List(
            mode,
            search,
            chips,
            over_time,
            low,
            high,
            bounds=html_panel(
                events=("edit", "export"), script=script("controls.js"), elem_id="narrow"
            ),
            file=gr.DownloadButton("Selection", visible="hidden", elem_id="selection-file"),
            newer=html_panel(events=("fresh",), elem_id="newer"),
            table=html_panel(events=("open", "sort", "turn"), elem_id="group-table"),
        )


# ---- events ----------------------------------------------------------------------------------


def _wire_filters(listed: _List, filters: gr.Textbox, refresh: RefreshEvents) -> None:
    """Everything that changes the filters, in the browser's own values."""

    def filter_on(event: Any, change: str, *more: Any) -> None:
        """change: the changed filters as a JavaScript object; it reads `now` and `given`.

        `now` holds the filters as they were, `given` the value of `more`.
        """
        js = f"(filters, given) => studioFilter(filters, now => ({change}))"
        refresh.after(event(None, [filters, *more], filters, js=js, **QUIET))

    filter_on(listed.mode.input, "{mode: given}", listed.mode)
    filter_on(listed.bounds.edit, "{where: studioForm('narrow')}")
    for text in (listed.search, listed.low, listed.high):
        filter_on(typing(text), "{}")
    filter_on(listed.chips.verdict, "{verdict: studioPressed.code}")
    filter_on(listed.chips.allsteps, "{steps: null}")
    filter_on(
        listed.table.sort,
        "{sort: studioPressed.key, descending: studioDescending(now.sort, now.descending)}",
    )
    filter_on(listed.table.turn, f"{{offset: Math.max(0, now.offset + {PAGE} * studioPressed.by)}}")
    filter_on(listed.newer.fresh, "{fresh: now.fresh + 1}")


def _wire_export(listed: _List, frame: Frame, views: Views, filters: gr.Textbox) -> None:
    def save(text: Any, run_id: Any, search: Any) -> list[Any]:
        return export_selection(views, run_id, text, search)

    listed.bounds.export(
        slow(save), [filters, frame.run, listed.search], [listed.file, frame.notice], **QUIET
    ).success(
        None,
        listed.file,
        None,
        js="(file) => { if (file) document.querySelector('#selection-file').click(); }",
    )


def _wire_use(side: GroupSide, frame: Frame, views: Views, setup: Setup, tabs: gr.Tabs) -> None:
    def use(run_id: Any, options: Any) -> list[Any]:
        return use_in_new_run(views, run_id, options)

    outputs = [*setup.filled, tabs, frame.tab, frame.notice]
    side.controls.use(use, [frame.run, side.inputs.options], outputs, **QUIET)


# ---- what a person does ----------------------------------------------------------------------


def export_selection(views: Views, run_id: Any, filters: Any, search: Any) -> list[Any]:
    """The completions that match as a file for the hidden download button, and a message."""
    run = views.run(run_id)
    if run is None:
        return [None, status.banner("Nothing was exported.", "Choose a run.")]
    conditions = wanted(read_filters(filters), search)
    try:
        path = export_folder() / file_name(run, "selection.jsonl")
        with path.open("w", encoding="utf-8") as out:
            num = export.export_found_jsonl(views.store, run.id, conditions, out)
    except (StudioError, OSError) as error:
        return [None, status.banner("Nothing was exported.", str(error))]
    if not num:
        return [None, status.banner("Nothing was exported.", "No completion matches.")]
    return [str(path), ""]


def choose_steps(views: Views, filters: Any, run_id: Any, event: gr.EventData) -> str:
    """The filters, narrowed to the steps of the clicked point of the curve."""
    step = data_of(event).get("step")
    series = views.verdict_series(run_id) if views.cursor(run_id) else []
    point = next((p for p in series if p.first == step), None)
    if point is None:
        return change_filters(filters)
    return change_filters(filters, steps=[point.first, point.last], offset=0)


# ---- what is shown ---------------------------------------------------------------------------


class ShowInspect:
    """Fills the list, then the group that is open in it."""

    def __init__(self, views: Views):
        self.views = views
        self.list, self.group = ShowList(views), ShowGroup(views)

    def __call__(self, *values: Any) -> list[Any]:
        given = InspectInputs(*values)
        if given.tab != "inspect":
            return [SKIP] * NUM_OUTPUTS
        query = ListQuery(
            given.run,
            str(given.search or "")[:MAX_SEARCH_CHARS],
            read_bound(given.low),
            read_bound(given.high),
            read_filters(given.filters),
        )
        listed = self.list(query, given.opened, given.seen)
        *_, opened, _ = listed
        run, ref = self.views.run(given.run), group_ref.parse_place(opened)
        inputs = GroupInputs(given.view, given.order, given.options, given.group_seen)
        return [*listed, *self.group(run, ref, inputs)]
