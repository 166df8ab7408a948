"""Search and filter all rollouts of a run, a page at a time, also over half a million."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from grpo_core.errors import StudioError
from grpo_core.store import search
from grpo_core.store.connection import Readers, Writer
from grpo_core.store.plain import text
from grpo_core.store.rows import FoundRollout, RolloutPage
from grpo_core.types import GroupKind

# Matches are counted up to this: counting half a million takes longer than finding 25.
COUNTED = 10_000
EXCERPT = 160  # characters of a completion in a list
MAX_PAGE = 1000

SORTS = {
    "newest": "g.step {}, g.position, r.position",
    "reward": "r.reward {} NULLS LAST",
    "advantage": "r.advantage {} NULLS LAST",
    "tokens": "r.num_tokens {} NULLS LAST",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Conditions on a rollout; None: any. Bounds are included. search: literal text.

    tool: it called this tool. calls: a key of CALLS; with `tool`, of that tool's calls.
    """

    search: str | None = None
    verdict: str | None = None
    finish_reason: str | None = None
    step_from: int | None = None
    step_to: int | None = None
    reward_from: float | None = None
    reward_to: float | None = None
    advantage_from: float | None = None
    advantage_to: float | None = None
    tokens_from: float | None = None
    tokens_to: float | None = None
    tool: str | None = None
    calls: str | None = None
    kind: str = GroupKind.TRAINING  # of its group


# What may be asked of a rollout's tool calls -> whether there is such a call, and its condition.
CALLS = {
    "some": (True, ""),
    "none": (False, ""),
    "failed": (True, " AND t.error != ''"),
    "answered": (True, " AND t.error = ''"),
}
CONDITIONS = {
    "kind": "g.kind = ?",
    "verdict": "g.verdict = ?",
    "finish_reason": "r.finish_reason = ?",
    "step_from": "g.step >= ?",
    "step_to": "g.step <= ?",
    "reward_from": "r.reward >= ?",
    "reward_to": "r.reward <= ?",
    "advantage_from": "r.advantage >= ?",
    "advantage_to": "r.advantage <= ?",
    "tokens_from": "r.num_tokens >= ?",
    "tokens_to": "r.num_tokens <= ?",
}
assert set(CONDITIONS) == {f.name for f in fields(Wanted)} - {"search", "tool", "calls"}


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a selection, in which order; `sort` is a key of SORTS."""

    sort: str = "newest"
    descending: bool = True
    limit: int = 25
    offset: int = 0


def find(readers: Readers, writer: Writer, run_id: str, wanted: Wanted, page: Page) -> RolloutPage:
    """One page. With a search text, an order other than newest covers the newest 10,000 matches."""
    if page.sort not in SORTS:
        raise StudioError(
            f"sort = {page.sort!r:.80}: rollouts are not sorted by that. Known: {', '.join(SORTS)}."
        )
    limit, offset = max(0, min(int(page.limit), MAX_PAGE)), max(0, min(int(page.offset), 2**40))
    where, values = _where(run_id, wanted)
    order = SORTS[page.sort].format("DESC" if page.descending else "ASC")
    query = text(wanted.search or "").strip()[: search.MAX_CHARS]
    if not query:
        ids = readers.all(
            f"SELECT r.id {_FROM} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?",
            (*values, limit, offset),
        )
        total = readers.all(
            f"SELECT COUNT(*) FROM (SELECT 1 {_FROM} WHERE {where} LIMIT ?)", (*values, COUNTED + 1)
        )[0][0]
        return RolloutPage(list(_rows(readers, [r["id"] for r in ids], query)), total, COUNTED, 0)
    matching, unsearched = _matching(readers, writer, _Condition(where, values, query))
    ids = [row["id"] for row in matching]
    total = len(ids)
    if page.sort == "newest":
        ids = (ids if page.descending else ids[::-1])[offset : offset + limit]
    else:
        marks = ", ".join("?" * len(ids))
        sql = f"SELECT r.id {_FROM} WHERE r.id IN ({marks}) ORDER BY {order} LIMIT ? OFFSET ?"
        ids = [row["id"] for row in readers.all(sql, (*ids, limit, offset))]
    return RolloutPage(list(_rows(readers, ids, query)), total, COUNTED, unsearched)


def ids_of(readers: Readers, writer: Writer, run_id: str, wanted: Wanted, most: int) -> list[int]:
    """The ids of the selection, newest first, for an export."""
    where, values = _where(run_id, wanted)
    query = text(wanted.search or "").strip()[: search.MAX_CHARS]
    if query:
        rows, _ = _matching(readers, writer, _Condition(where, values, query), most)
    else:
        order = SORTS["newest"].format("DESC")
        sql = f"SELECT r.id {_FROM} WHERE {where} ORDER BY {order} LIMIT ?"
        rows = readers.all(sql, (*values, most))
    return [row["id"] for row in rows]


_FROM = "FROM groups g JOIN rollouts r ON r.group_id = g.id"


def _where(run_id: str, wanted: Wanted) -> tuple[str, list[Any]]:
    sql, values = ["g.run_id = ?"], [text(run_id)]
    for name, condition in CONDITIONS.items():
        value = getattr(wanted, name)
        if value is not None and value != "":
            sql.append(condition)
            values.append(text(value) if isinstance(value, str) else value)
    if wanted.tool or wanted.calls in CALLS:
        there, condition = CALLS[wanted.calls if wanted.calls in CALLS else "some"]
        condition += " AND t.tool = ?" if wanted.tool else ""
        values += [text(wanted.tool)] if wanted.tool else []
        sql.append(
            f"{'' if there else 'NOT '}EXISTS (SELECT 1 FROM turns t WHERE t.rollout_id = r.id "
            f"AND t.role = 'observation'{condition})"
        )
    return " AND ".join(sql), values


@dataclass(frozen=True, slots=True)
class _Condition:
    where: str
    values: list[Any]
    query: str  # literal text of the completion


def _matching(
    readers: Readers, writer: Writer, condition: _Condition, most: int = COUNTED + 1
) -> tuple[list[Any], int]:
    """Ids of matching completions, newest first, and how many completions were not searched.

    The newest are read, then the index is used.
    """
    pattern, trigrams = search.like(condition.query), search.trigrams_of(condition.query)
    reach = search.catch_up(readers, writer) if trigrams else search.Reach(0, 0)
    where = f"{search.CONTAINS} AND {condition.where}"
    # CROSS JOIN keeps the order of the tables: from the newest rollout back.
    found = readers.all(
        "SELECT r.id FROM rollouts r CROSS JOIN groups g ON g.id = r.group_id "
        f"WHERE r.id > ? AND {where} ORDER BY r.id DESC LIMIT ?",
        (reach.read_after, pattern, pattern, *condition.values, most),
    )
    if reach.indexed and len(found) < most:
        found += readers.all(
            "SELECT r.id FROM completions_fts f CROSS JOIN rollouts r ON r.id = f.rowid "
            "CROSS JOIN groups g ON g.id = r.group_id "
            f"WHERE completions_fts MATCH ? AND {where} ORDER BY f.rowid DESC LIMIT ?",
            (trigrams, pattern, pattern, *condition.values, most - len(found)),
        )
    return found, reach.unsearched


def tools_of(readers: Readers, run_id: str) -> list[str]:
    """The names of the tools that a run's completions called, in order."""
    rows = readers.all(
        "SELECT DISTINCT t.tool FROM groups g JOIN rollouts r ON r.group_id = g.id "
        "JOIN turns t ON t.rollout_id = r.id WHERE g.run_id = ? AND t.tool != '' ORDER BY t.tool",
        (text(run_id),),
    )
    return [row["tool"] for row in rows]


def _rows(readers: Readers, ids: list[int], query: str) -> Iterator[FoundRollout]:
    # What was not found in the text was found in a tool call.
    found_in = (
        "CASE WHEN instr(lower(r.text), lower(:query)) THEN r.text ELSE COALESCE((SELECT "
        f"{search.CALL} FROM turns t WHERE t.rollout_id = r.id AND t.role = 'observation' AND "
        f"instr(lower({search.CALL}), lower(:query)) LIMIT 1), r.text) END"
    )
    rows = {
        r["id"]: r
        for r in readers.all(
            "SELECT *, substr(found, max(1, instr(lower(found), lower(:query)) - 40), "
            f"{EXCERPT + 1}) AS text, instr(lower(found), lower(:query)) AS at FROM (SELECT r.id, "
            "g.step, g.position AS grp, r.position, g.verdict, g.kind, r.finish_reason, "
            f"r.num_tokens, r.reward, r.advantage, {found_in} AS found {_FROM} "
            f"WHERE r.id IN ({', '.join(map(str, ids))}))",
            {"query": query},
        )
    }
    for r in (rows[i] for i in ids if i in rows):
        excerpt = ("…" if query and r["at"] > 41 else "") + (
            r["text"] if len(r["text"]) <= EXCERPT else r["text"][: EXCERPT - 1] + "…"
        )
        yield FoundRollout(
            r["id"],
            r["step"],
            r["grp"],
            r["position"],
            r["verdict"],
            excerpt,
            r["finish_reason"],
            r["num_tokens"],
            r["reward"],
            r["advantage"],
            r["kind"],
        )
