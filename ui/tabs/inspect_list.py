"""The left side of Inspect: the groups or the completions of a run as a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from grpo_core.errors import StudioError
from grpo_core.store import Page, RunRow
from grpo_core.types import GroupKind
from ui.render import charts, completion_list, status, tables
from ui.render.place import Place
from ui.render.recorded_config import highest_reward
from ui.render.text import count, esc, indexing
from ui.server import group_ref
from ui.server.views import Views
from ui.tabs.frame import SKIP, parse_tokens, token
from ui.tabs.inspect_filters import ListQuery, wanted

PAGE = 25  # rows in the table


@dataclass(frozen=True, slots=True)
class _Table:
    html: str
    first: Place | None = None  # the group of the first row
    is_indexing: bool = False  # more rows may come when the search index is built


class ShowList:
    """Fills every output that is out of date, as ShowTrain does.

    While a run goes on the table stays as it is, so that no row moves under the pointer. A line
    above it counts the newer groups.
    """

    def __init__(self, views: Views):
        self.views = views

    def __call__(self, query: ListQuery, opened: Any, seen: Any) -> list[Any]:
        """Values of chips, verdicts over time, bounds, table, newer groups, open group, seen.

        opened: the group a person chose, as text; if empty, the first row is open.
        """
        views, was, filters = self.views, parse_tokens(seen), query.filters
        run = views.run(query.run_id)
        counts = views.store.verdict_counts(run.id) if run else {}
        num_evaluation = views.store.num_evaluation_groups(run.id) if run else 0
        is_evaluation = filters.kind == GroupKind.EVALUATION
        total = num_evaluation if is_evaluation else sum(counts.values())
        ref = group_ref.parse_place(opened)
        is_completions = filters.mode == "rollouts"
        tools = views.tools(run) if is_completions else []
        now = {
            "chips": token([query.run_id, counts, num_evaluation, filters.verdict, filters.steps]),
            "series": token([query.run_id, counts]),
            "table": token([query, ref]),
            "run": token(query.run_id),
            "mode": token([filters.mode, tools]),
            "query": token(query),
        }
        # How many groups the run had when the table was drawn.
        num_shown: int = 0
        if was.get("run") == now["run"] and isinstance(was.get("total"), int):
            num_shown = was["total"]
        redraw = was.get("table") != now["table"] or (num_shown == 0 and total > 0)
        if was.get("query") != now["query"] or num_shown == 0:
            num_shown = total
        first, table = group_ref.parse_place(was.get("first")), SKIP
        if redraw:
            drawn = self._table(run, query, ref)
            first = drawn.first
            if opened == "" and first and run:  # mark the first row as the open one
                drawn = self._table(run, query, first)
            table = drawn.html
            if drawn.is_indexing:
                now["table"] = ""  # so that the next poll draws it again
        now["newer"] = str(total - num_shown)
        new = {key for key in ("chips", "series", "mode", "newer") if now[key] != was.get(key)}
        chips = series = bounds = newer = SKIP
        if "chips" in new:
            chips = tables.verdict_chips(counts, num_evaluation, filters.verdict, filters.steps)
        if "series" in new:
            verdicts = views.verdict_series(run.id) if run else []
            series = charts.verdicts(verdicts, str(query.run_id))
        if "mode" in new:
            bounds = completion_list.controls(filters.where, tools) if is_completions else ""
        if "newer" in new:
            newer = _newer(total - num_shown)
        state = now | {"total": num_shown, "first": str(first or "")}
        return [
            chips,
            series,
            bounds,
            table,
            newer,
            str(ref or first or ""),
            json.dumps(state),
        ]

    def _table(self, run: RunRow | None, query: ListQuery, ref: Place | None) -> _Table:
        if run is None:
            return _Table(
                status.empty(
                    "The groups of a run appear here",
                    "Start one on the Train tab, or choose one above.",
                )
            )
        if query.filters.mode == "rollouts":
            return self._completions(run, query, ref)
        return self._groups(run, query, ref)

    def _groups(self, run: RunRow, query: ListQuery, ref: Place | None) -> _Table:
        filters = query.filters
        step_from, step_to = filters.step_bounds
        try:
            page = self.views.store.groups(
                run.id,
                kind=filters.kind,
                verdict=filters.verdict or None,
                search=query.search.strip() or None,
                reward_from=query.reward_from,
                reward_to=query.reward_to,
                step_from=step_from,
                step_to=step_to,
                sort=filters.sort,
                descending=filters.descending,
                limit=PAGE,
                offset=filters.offset,
            )
        except StudioError as error:
            return _Table(status.banner("The groups could not be searched.", str(error)))
        is_indexing = page.unsearched > 0
        if not page.rows:
            html = indexing(page.unsearched) + _no_groups(run, query.is_filtered)
            return _Table(html, is_indexing=is_indexing)
        sort = tables.Sort(filters.sort, filters.descending)
        html = tables.group_table(page, highest_reward(run.config), filters.offset, sort, ref)
        first = page.rows[0]
        return _Table(html, Place(first.step, first.position, filters.kind), is_indexing)

    def _completions(self, run: RunRow, query: ListQuery, ref: Place | None) -> _Table:
        filters = query.filters
        try:
            sort = filters.where.get("sort") or "newest"
            ascending = filters.where.get("up") is True
            page = self.views.store.find_rollouts(
                run.id,
                wanted(filters, query.search),
                Page(sort, not ascending, PAGE, filters.offset),
            )
        except StudioError as error:
            return _Table(status.banner("The completions could not be searched.", str(error)))
        is_indexing = page.unsearched > 0
        if not page.rows:
            html = indexing(page.unsearched) + status.empty(
                "No completion matches", "Empty the search box, choose “all”, or widen the bounds."
            )
            return _Table(html, is_indexing=is_indexing)
        html = completion_list.rollout_table(page, filters.offset, ref)
        first = page.rows[0]
        return _Table(html, Place(first.step, first.group, filters.kind), is_indexing)


def _no_groups(run: RunRow, is_filtered: bool) -> str:
    if is_filtered:
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
    label = esc(count(n, "newer group"))
    return f'<button type="button" class="quiet" data-do="fresh">{label}: show</button>'
