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
    """Conditions on a rollout; None: any. Bounds are included. search: literal text."""

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
    kind: str = GroupKind.TRAINING  # of its group


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
assert set(CONDITIONS) == {f.name for f in fields(Wanted)} - {"search"}


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
    where = f"r.text LIKE ? ESCAPE '\\' AND {condition.where}"
    # CROSS JOIN keeps the order of the tables: from the newest rollout back.
    found = readers.all(
        "SELECT r.id FROM rollouts r CROSS JOIN groups g ON g.id = r.group_id "
        f"WHERE r.id > ? AND {where} ORDER BY r.id DESC LIMIT ?",
        (reach.read_after, pattern, *condition.values, most),
    )
    if reach.indexed and len(found) < most:
        found += readers.all(
            "SELECT r.id FROM completions_fts f CROSS JOIN rollouts r ON r.id = f.rowid "
            "CROSS JOIN groups g ON g.id = r.group_id "
            f"WHERE completions_fts MATCH ? AND {where} ORDER BY f.rowid DESC LIMIT ?",
            (trigrams, pattern, *condition.values, most - len(found)),
        )
    return found, reach.unsearched


def _rows(readers: Readers, ids: list[int], query: str) -> Iterator[FoundRollout]:
    rows = {
        r["id"]: r
        for r in readers.all(
            "SELECT r.id, g.step, g.position AS grp, r.position, g.verdict, g.kind, "
            "r.finish_reason, r.num_tokens, r.reward, r.advantage, "
            f"substr(r.text, max(1, instr(lower(r.text), lower(?)) - 40), {EXCERPT + 1}) AS "
            "text, instr(lower(r.text), lower(?)) AS at "
            f"{_FROM} WHERE r.id IN ({', '.join('?' * len(ids))})",
            (query, query, *ids),
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
