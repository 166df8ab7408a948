"""The Inspect tab: every group of a run as a table, searched and filtered, and one of them opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import RunRow, Wanted, export
from ui.components.html_panel import QUIET, data_of, html_panel, one_of, script, typing
from ui.components.live_chart import live_chart
from ui.render import charts, status, tables
from ui.render import completion_list as found
from ui.render.recorded_config import highest_reward
from ui.render.text import count, esc, indexing, is_number
from ui.server import group_ref as place
from ui.server.views import Views
from ui.tabs.exports import export_folder, file_name
from ui.tabs.inspect_group import ShowOpened, build_opened
from ui.tabs.setup import Setup
from ui.tabs.train import SKIP, Frame, parse_tokens, token

PAGE = 25  # groups in the table
FIRST = {
    "verdict": "",
    "sort": "step",
    "descending": True,
    "offset": 0,
    "fresh": 0,
    "steps": None,
    "mode": "groups",
    "where": {},
}


@dataclass(frozen=True)
class Inspect:
    opened: gr.Textbox  # the place of the opened group, "37/2"
    inputs: list[Any]
    outputs: list[Any]
    show: Any


def build_inspect(frame: Frame, views: Views, setup: Setup, tabs: gr.Tabs) -> Inspect:
    """Lay the tab out and make it answer. Must be called inside gr.Blocks."""
    with gr.Row(elem_id="inspect-row", equal_height=False):
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
                placeholder="Text in any prompt or completion",
                max_lines=1,
                elem_id="search",
                show_label=False,
                interactive=True,
            )
            chips = html_panel(events=("verdict", "allsteps"), elem_id="chips")
            over_time = live_chart(charts.verdicts([], ""), elem_id="verdicts-over-time")
            with gr.Row(elem_id="reward-range"):
                low = gr.Textbox(
                    "",
                    label="Mean reward from",
                    max_lines=1,
                    elem_id="reward-from",
                    interactive=True,
                )
                high = gr.Textbox(
                    "", label="to", max_lines=1, elem_id="reward-to", interactive=True
                )
            narrow = html_panel(
                events=("say", "export"), script=script("controls.js"), elem_id="narrow"
            )
            file = gr.DownloadButton("Selection", visible="hidden", elem_id="selection-file")
            newer = html_panel(events=("fresh",), elem_id="newer")
            table = html_panel(events=("open", "sort", "turn"), elem_id="group-table")
        filters, at, seen = (
            gr.Textbox(v, visible="hidden", label=n, elem_id=f"state-inspect-{n}")
            for n, v in (("filters", json.dumps(FIRST)), ("at", ""), ("seen", "{}"))
        )
        side = build_opened(frame, views, setup, tabs, at)
    opened = side.opened

    inputs = [frame.run, frame.tab, search, low, high, filters, opened, seen, *side.inputs]
    outputs = [chips, over_time, narrow, table, newer, at, seen, *side.outputs]
    show = ShowInspect(ShowGroups(views), side.show)
    fill = frame.shows.js("inspect", show, inputs)

    def show_on(event: Any) -> None:
        event(None, inputs, outputs, js=fill, **QUIET)

    def then_show(event: Any) -> None:
        event.then(None, inputs, outputs, js=fill, **QUIET)

    def pick(now: Any, run_id: Any, event: gr.EventData) -> str:
        return choose_steps(views, now, run_id, event)

    def save(now: Any, run_id: Any, text: Any) -> list[Any]:
        return export_selection(views, run_id, now, text)

    narrow.export(save, [filters, frame.run, search], [file, frame.notice], **QUIET).success(
        None,
        file,
        None,
        js="(file) => { if (file) document.querySelector('#selection-file').click(); }",
    )

    def then_filter(event: Any, change: str, *more: Any) -> None:
        """change: a JavaScript object, what is new of the filters; `now` is what they were, `given` the value of `more`."""
        then_show(
            event(
                None,
                [filters, *more],
                filters,
                js=f"(filters, given) => studioFilter(filters, now => ({change}))",
                **QUIET,
            )
        )

    then_filter(mode.input, "{mode: given}", mode)
    then_filter(narrow.say, "{where: studioForm('narrow')}")
    for typed in (search, low, high):
        then_filter(typing(typed), "{}")
    then_filter(chips.verdict, "{verdict: studioPressed.code}")
    then_filter(chips.allsteps, "{steps: null}")
    then_filter(
        table.sort,
        "{sort: studioPressed.key, descending: studioDescending(now.sort, now.descending)}",
    )
    then_filter(table.turn, f"{{offset: Math.max(0, now.offset + {PAGE} * studioPressed.by)}}")
    then_filter(newer.fresh, "{fresh: now.fresh + 1}")
    then_show(over_time.pick(pick, [filters, frame.run], filters, **QUIET))
    then_show(table.open(None, None, opened, js="() => studioPressed.at", **QUIET))
    side.wire(then_show, show_on)
    frame.run.input(
        None,
        None,
        [opened, filters],
        js=f"() => ['', JSON.stringify({json.dumps(FIRST)})]",
        **QUIET,
    )
    return Inspect(opened, inputs, outputs, show)


# ---- what a person does ----------------------------------------------------------------------------------------------


def read_filters(text: Any) -> dict[str, Any]:
    """The hidden value of the filters; whatever is wrong in it falls back to the first."""
    data = parse_tokens(text)
    offset, fresh = (data.get(k) for k in ("offset", "fresh"))
    return {
        "verdict": one_of(data.get("verdict"), VERDICTS, ""),
        "sort": one_of(data.get("sort"), tables.SORTS, "step"),
        "descending": data.get("descending") is not False,
        "offset": offset if isinstance(offset, int) and 0 <= offset < 1e9 else 0,
        "fresh": fresh if isinstance(fresh, int) else 0,
        "steps": _span(data.get("steps")),
        "mode": one_of(data.get("mode"), ("groups", "rollouts"), "groups"),
        "where": found.read(data.get("where")),
    }


def _span(value: Any) -> list[int] | None:
    """First and last step, bounds included."""
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1e9 for v in value)
    ):
        return value
    return None


def changed(filters: Any, **change: Any) -> str:
    return json.dumps({**read_filters(filters), **change})


def wanted(now: dict[str, Any], search: Any) -> Wanted:
    """The conditions of the list as the store takes them."""
    steps, where = now["steps"] or [None, None], now["where"]
    bounds = {name: _bound(where.get(name)) for name in found.BOUNDS}
    return Wanted(
        str(search or "").strip()[:200] or None,
        now["verdict"] or None,
        where.get("finish") or None,
        steps[0],
        steps[1],
        **bounds,
    )


def export_selection(views: Views, run_id: Any, filters: Any, search: Any) -> list[Any]:
    """The rollouts of the present selection as a file, for the hidden download button."""
    run = views.run(run_id)
    if run is None:
        return [None, status.banner("Nothing was exported.", "Choose a run.")]
    try:
        path = export_folder() / file_name(run, "selection.jsonl")
        with path.open("w", encoding="utf-8") as out:
            n = export.export_found_jsonl(
                views.store, run.id, wanted(read_filters(filters), search), out
            )
    except (StudioError, OSError) as error:
        return [None, status.banner("Nothing was exported.", str(error))]
    return (
        [str(path), ""]
        if n
        else [None, status.banner("Nothing was exported.", "No completion matches.")]
    )


def choose_steps(views: Views, filters: Any, run_id: Any, event: gr.EventData) -> str:
    """The steps that the clicked point of the curve stands for."""
    step = data_of(event).get("step")
    spans = [
        s for s in (views.verdict_series(run_id) if views.cursor(run_id) else []) if s.first == step
    ]
    return (
        changed(filters, steps=[spans[0].first, spans[0].last], offset=0)
        if spans
        else changed(filters)
    )


def _bound(text: Any) -> float | None:
    """A bound of the reward range; what is no number bounds nothing."""
    try:
        value = float(str(text).replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None
    return value if is_number(value) else None


# ---- what is shown ---------------------------------------------------------------------------------------------------


class ShowInspect:
    """The list, then the group that it says is open."""

    def __init__(self, groups: ShowGroups, opened: ShowOpened):
        self.groups, self.opened = groups, opened

    def __call__(
        self,
        run_id: Any,
        tab: Any,
        search: Any,
        low: Any,
        high: Any,
        filters: Any,
        opened: Any,
        seen: Any,
        *looking: Any,
    ) -> list[Any]:
        if tab != "inspect":
            return [SKIP] * 11
        out = self.groups(run_id, search, low, high, filters, opened, seen)
        return [*out, *self.opened(self.groups.views.run(run_id), place.parse(out[5]), *looking)]


class ShowGroups:
    """Fills what is out of date, as train.Show does.

    While a run goes on the table stays as it is, so that no row moves under a pointer; a line above it says how many groups came since.
    """

    def __init__(self, views: Views):
        self.views = views

    def __call__(
        self, run_id: Any, search: Any, low: Any, high: Any, filters: Any, opened: Any, seen: Any
    ) -> list[Any]:
        views, was, now = self.views, parse_tokens(seen), read_filters(filters)
        run = views.run(run_id)
        counts = views.store.verdict_counts(run.id) if run else {}
        total = sum(counts.values())
        wish = [run_id, str(search or "")[:200], _bound(low), _bound(high), now]
        at = place.parse(opened)
        tokens = {
            "chips": token([run_id, counts, now["verdict"], now["steps"]]),
            "series": token([run_id, counts]),
            "table": token([wish, at]),
            "run": token(run_id),
            "mode": now["mode"],
        }
        shown = (
            was.get("total")
            if was.get("run") == tokens["run"] and isinstance(was.get("total"), int)
            else 0
        )
        redraw = was.get("table") != tokens["table"] or (shown == 0 and total > 0)
        if was.get("wish") != token(wish) or shown == 0:
            shown = total  # a new question is answered with everything there is
        first = place.parse(was.get("first"))
        out_table, filling = SKIP, False
        if redraw:
            out_table, first, filling = self._table(run, *wish[1:4], now, at)
        at = at or first
        tokens |= {
            "total": shown,
            "wish": token(wish),
            "first": place.text(first),
            "newer": str(total - shown),
        }
        if redraw and opened == "" and first and run:  # the first row stands open: mark it
            out_table, _, filling = self._table(run, *wish[1:4], now, first)
        if filling:
            tokens["table"] = ""  # the next poll asks again
        return [
            tables.verdict_chips(counts, now["verdict"], now["steps"])
            if tokens["chips"] != was.get("chips")
            else SKIP,
            charts.verdicts(views.verdict_series(run.id) if run else [], str(run_id))
            if tokens["series"] != was.get("series")
            else SKIP,
            (found.controls(now["where"]) if now["mode"] == "rollouts" else "")
            if tokens["mode"] != was.get("mode")
            else SKIP,
            out_table,
            _newer(total - shown) if tokens["newer"] != was.get("newer") else SKIP,
            place.text(at),
            json.dumps(tokens),
        ]

    def _table(
        self,
        run: RunRow | None,
        search: str,
        low: float | None,
        high: float | None,
        now: dict[str, Any],
        at: place.GroupRef | None,
    ) -> tuple[str, place.GroupRef | None, bool]:
        """The table, the place of its first row, and whether it will have more once the search index is built."""
        if run is None:
            return (
                status.empty(
                    "The groups of a run appear here",
                    "Start one on the Train tab, or choose one above.",
                ),
                None,
                False,
            )
        if now["mode"] == "rollouts":
            return self._rollouts(run, search, now, at)
        steps = now["steps"] or [None, None]
        try:
            page = self.views.store.groups(
                run.id,
                verdict=now["verdict"] or None,
                search=search.strip() or None,
                reward_from=low,
                reward_to=high,
                step_from=steps[0],
                step_to=steps[1],
                sort=now["sort"],
                descending=now["descending"],
                limit=PAGE,
                offset=now["offset"],
            )
        except StudioError as error:
            return status.banner("The groups could not be searched.", str(error)), None, False
        if not page.rows:
            return (
                indexing(page.unsearched)
                + _nothing(
                    run,
                    bool(
                        search
                        or now["verdict"]
                        or now["steps"]
                        or low is not None
                        or high is not None
                    ),
                ),
                None,
                page.unsearched > 0,
            )
        first = (page.rows[0].step, page.rows[0].position)
        return (
            tables.group_table(
                page,
                highest_reward(run.config),
                now["offset"],
                tables.Sort(now["sort"], now["descending"]),
                at,
            ),
            first,
            page.unsearched > 0,
        )

    def _rollouts(
        self, run: RunRow, search: str, now: dict[str, Any], at: place.GroupRef | None
    ) -> tuple[str, place.GroupRef | None, bool]:
        """One page of completions, and the place of the first one's group."""
        where = now["where"]
        try:
            page = self.views.store.find_rollouts(
                run.id,
                wanted(now, search),
                where.get("sort") or "newest",
                where.get("up") is not True,
                PAGE,
                now["offset"],
            )
        except StudioError as error:
            return status.banner("The completions could not be searched.", str(error)), None, False
        if not page.rows:
            nothing = status.empty(
                "No completion matches", "Empty the search box, choose “all”, or widen the bounds."
            )
            return indexing(page.unsearched) + nothing, None, page.unsearched > 0
        return (
            found.rollout_table(page, now["offset"], at),
            (page.rows[0].step, page.rows[0].group),
            page.unsearched > 0,
        )


def _nothing(run: RunRow, filtered: bool) -> str:
    if filtered:
        return status.empty(
            "No group matches",
            "Choose “all”, all steps, empty the search box, or widen the range of rewards.",
        )
    if run.status.is_live:
        return status.empty(
            "No groups yet", "The first appear when the first step has been scored."
        )
    return status.empty("This run has no groups", "It ended before its first step.")


def _newer(n: int) -> str:
    if n <= 0:
        return ""
    return f'<button type="button" class="quiet" data-do="fresh">{esc(count(n, "newer group"))}: show</button>'
