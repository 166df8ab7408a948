"""Queries of groups, their rollouts and tokens. Read-only; every result comes whole."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict, Unpack

from grpo_core.errors import NotFound, StudioError
from grpo_core.store import rollouts, visited
from grpo_core.store import search as fulltext
from grpo_core.store.connection import Readers, Writer
from grpo_core.store.downsample import stride
from grpo_core.store.plain import integer, text
from grpo_core.store.problems import decoding
from grpo_core.store.rollouts import Page, Wanted
from grpo_core.store.rows import (
    GroupPage,
    GroupRow,
    GroupSummary,
    PromptVisits,
    RolloutPage,
    RolloutRow,
    ScoredRow,
    TokenRow,
    VerdictCounts,
    WalkableGroup,
)
from grpo_core.types import GroupKind, Turn, TurnRole

EXCERPT = 200  # characters of a completion in a list of groups
MAX_PAGE = 1000

# What a list of groups can be sorted by. A table, because a column name cannot be a parameter of a
# query. What is not known comes last.
SORTS = {
    "step": "g.step {}",
    "position": "g.position {}",
    "reward_mean": "g.reward_mean {} NULLS LAST",
    "reward_std": "g.reward_std {} NULLS LAST",
    "verdict": "g.verdict {}",
    "prompt": "g.prompt {}",
}


COUNTED = 1_000  # groups with a common text are counted this far beyond the page in view


class GroupsWanted(TypedDict, total=False):
    """Conditions on a group, bounds included, and which page in which order."""

    kind: str  # default "training"
    verdict: str | None
    search: str | None
    step_from: int | None
    step_to: int | None
    reward_from: float | None  # of the group's mean reward
    reward_to: float | None
    sort: str  # a key of SORTS; default "step"
    descending: bool  # default True
    limit: int  # default 50
    offset: int


GROUP_CONDITIONS = {
    "verdict": "g.verdict = ?",
    "step_from": "g.step >= ?",
    "step_to": "g.step <= ?",
    "reward_from": "g.reward_mean >= ?",
    "reward_to": "g.reward_mean <= ?",
}


class GroupQueries:
    """What a run generated, and the rewards."""

    def __init__(self, readers: Readers, writer: Writer):
        self._readers = readers
        # Only for building the search index, and to know whether the file is damaged.
        self._writer = writer

    def group_ids(self, run_id: str, step: int, kind: str = GroupKind.TRAINING) -> list[int]:
        """Ids of the groups of a step, in order."""
        rows = self._readers.all(
            "SELECT id FROM groups WHERE run_id = ? AND kind = ? AND step = ? ORDER BY position",
            (text(run_id), text(kind), integer(step)),
        )
        return [row["id"] for row in rows]

    def all_group_ids(self, run_id: str, kind: str = GroupKind.TRAINING) -> list[int]:
        """Ids of all groups of a run, in order."""
        rows = self._readers.all(
            "SELECT id FROM groups WHERE run_id = ? AND kind = ? ORDER BY step, position",
            (text(run_id), text(kind)),
        )
        return [row["id"] for row in rows]

    def last_step_with_groups(self, run_id: str) -> int | None:
        return self._readers.all(
            "SELECT MAX(step) FROM groups WHERE run_id = ? AND kind = 'training'", (text(run_id),)
        )[0][0]

    def group(self, group_id: int) -> GroupRow:
        """A group with all its rollouts."""
        try:
            rows = self._readers.all("SELECT * FROM groups WHERE id = ?", (integer(group_id),))
        except (TypeError, ValueError):
            rows = []
        if not rows:
            raise NotFound(
                f"group {text(group_id)!r:.80} is not in the store. Its run may have been "
                "deleted; choose another group."
            )
        return self._with_rollouts(rows)[0]

    def newest_groups(self, run_id: str, limit: int) -> list[GroupRow]:
        """The last groups of a run with their rollouts, newest first."""
        return self._with_rollouts(
            self._readers.all(
                "SELECT * FROM groups WHERE run_id = ? AND kind = 'training' "
                "ORDER BY step DESC, position LIMIT ?",
                (text(run_id), limit),
            )
        )

    def scored(
        self, run_id: str, step_from: int = 0, step_to: int | None = None
    ) -> list[ScoredRow]:
        """All rollouts of a run as numbers, in order. Their texts would make the answer large."""
        rows = self._readers.all(
            "SELECT g.step, g.id, g.position, g.prompt_id, g.prompt, r.id, r.position, r.scores, "
            "r.reward, r.advantage, r.edited, r.num_tokens, r.finish_reason "
            "FROM groups g JOIN rollouts r ON r.group_id = g.id "
            "WHERE g.run_id = ? AND g.kind = 'training' AND g.step BETWEEN ? AND ? "
            "ORDER BY g.step, g.position, r.position",
            (text(run_id), integer(step_from), integer(2**62 if step_to is None else step_to)),
        )
        return [ScoredRow._make(row) for row in rows]

    def token_row(self, rollout_id: int) -> TokenRow | None:
        """The tokens of a rollout with what was recorded of each; None if nothing was."""
        rows = self._readers.all(
            "SELECT t.*, g.run_id FROM token_records t JOIN rollouts r ON r.id = t.rollout_id "
            "JOIN groups g ON g.id = r.group_id "
            "WHERE t.rollout_id = ?",
            (integer(rollout_id),),
        )
        if not rows:
            return None
        row, ids = rows[0], array("i", rows[0]["token_ids"])
        distinct = sorted(set(ids))
        pieces: dict[int, bytes] = {}
        for start in range(0, len(distinct), 500):
            part = distinct[start : start + 500]
            pieces |= {
                r["token_id"]: r["piece"]
                for r in self._in(
                    "SELECT token_id, piece FROM token_pieces WHERE run_id = ? AND token_id IN "
                    "({})",
                    part,
                    row["run_id"],
                )
            }
        floats = {
            name: None if row[name] is None else array("f", row[name])
            for name in (
                "sampling_logprobs",
                "logprobs",
                "ref_logprobs",
                "entropy",
                "logprobs_after",
            )
        }
        return TokenRow(
            rollout_id, ids, tuple(pieces.get(i, f"[{i}]".encode()) for i in ids), **floats
        )

    def first_middle_last(self, run_id: str, prompt_id: str) -> list[GroupRow]:
        """Three visits of a run to a prompt, in order; empty if there were fewer."""
        rows = self._readers.all(
            "SELECT * FROM groups WHERE prompt_id = ? AND run_id = ? ORDER BY step, position",
            (text(prompt_id), text(run_id)),
        )
        if len(rows) < 3:
            return []
        return self._with_rollouts([rows[0], rows[(len(rows) - 1) // 2], rows[-1]])

    def groups_to_walk(self, run_id: str, limit: int = 24) -> list[WalkableGroup]:
        """Groups of a run that show its arithmetic best, among its newest 400.

        First those that have advantages, then those with all tokens, then those measured after the
        step, then those with the most different rewards, then the newest.
        """
        rows = self._readers.all(
            """
            SELECT g.step, g.position, substr(g.prompt, 1, ?) AS prompt
            FROM groups g JOIN rollouts r ON r.group_id = g.id
            LEFT JOIN token_records t ON t.rollout_id = r.id
            WHERE g.id IN (SELECT id FROM groups WHERE run_id = ? AND kind = 'training'
                           ORDER BY step DESC, position LIMIT 400)
            GROUP BY g.id
            ORDER BY MAX(r.advantage != 0) DESC, COUNT(t.logprobs) = COUNT(*) DESC,
              COUNT(t.logprobs_after) = COUNT(*) DESC,
              MIN(COUNT(DISTINCT round(r.reward, 6)), 4) DESC, g.step DESC, g.position
            LIMIT ?""",
            (EXCERPT, text(run_id), integer(limit)),
        )
        return [WalkableGroup(*row) for row in rows]

    def visits(self, run_id: str, prompt_id: str, limit: int = 200) -> list[GroupRow]:
        """The groups of one prompt in a run, in order of steps; the last `limit` of them.

        Those of evaluations too.
        """
        rows = self._readers.all(
            "SELECT * FROM groups WHERE prompt_id = ? AND run_id = ? ORDER BY step DESC, "
            "position DESC LIMIT ?",
            (text(prompt_id), text(run_id), limit),
        )
        return self._with_rollouts(rows[::-1])

    def runs_with_prompt(self, prompt_id: str) -> list[str]:
        """The runs that sampled a prompt."""
        return [
            row["run_id"]
            for row in self._readers.all(
                "SELECT DISTINCT run_id FROM groups WHERE prompt_id = ?", (text(prompt_id),)
            )
        ]

    def repeated_prompts(self, run_id: str, limit: int = 50) -> list[PromptVisits]:
        """The prompts that came up more than once in a run: held-out first, most visits first."""
        return visited.repeated(self._readers, text(run_id), limit)

    def shared_prompts(self, run_id: str, limit: int = 50) -> list[PromptVisits]:
        """The prompts of a run that another run met too, in the same order."""
        return visited.shared(self._readers, text(run_id), limit)

    def num_evaluation_groups(self, run_id: str) -> int:
        return self._readers.all(
            "SELECT COUNT(*) FROM groups WHERE run_id = ? AND kind = 'evaluation'", (text(run_id),)
        )[0][0]

    def find_rollouts(self, run_id: str, wanted: Wanted, page: Page | None = None) -> RolloutPage:
        """One page of the rollouts that meet every condition, see rollouts.py."""
        return rollouts.find(self._readers, self._writer, run_id, wanted, page or Page())

    def tools(self, run_id: str) -> list[str]:
        """The names of the tools that a run's completions called."""
        return rollouts.tools_of(self._readers, run_id)

    def iter_found(
        self, run_id: str, wanted: Wanted, most: int = 100_000, chunk: int = 500
    ) -> Iterator[tuple[GroupRow, RolloutRow]]:
        """The newest `most` rollouts that meet every condition, each with its group.

        A few hundred are in memory at a time.
        """
        ids = rollouts.ids_of(self._readers, self._writer, run_id, wanted, most)
        for start in range(0, len(ids), chunk):
            part = set(ids[start : start + chunk])
            groups = self._in(
                "SELECT * FROM groups WHERE id IN (SELECT group_id FROM rollouts WHERE id IN "
                "({})) ORDER BY step DESC, position",
                list(part),
            )
            for group in self._with_rollouts(groups):
                yield from ((group, r) for r in group.rollouts if r.id in part)

    def verdict_counts(self, run_id: str) -> dict[str, int]:
        rows = self._readers.all(
            "SELECT verdict, COUNT(*) AS n FROM groups WHERE run_id = ? AND kind = 'training' "
            "GROUP BY verdict ORDER BY verdict",
            (text(run_id),),
        )
        return {row["verdict"]: row["n"] for row in rows}

    def verdict_series(self, run_id: str, max_points: int = 300) -> list[VerdictCounts]:
        """Groups of each verdict, for spans of steps of equal length, in order.

        A span is one step while the run is short.
        """
        run_id = text(run_id)
        first, last = self._readers.all(
            "SELECT MIN(step), MAX(step) FROM groups WHERE run_id = ? AND kind = 'training'",
            (run_id,),
        )[0]
        if first is None:
            return []
        every = stride(first, last, max_points)
        spans: dict[int, dict[str, int]] = {}
        for at, verdict, n in self._readers.all(
            "SELECT (step - ?) / ? AS at, verdict, COUNT(*) FROM groups "
            "WHERE run_id = ? AND kind = 'training' GROUP BY at, verdict ORDER BY at",
            (first, every, run_id),
        ):
            spans.setdefault(first + at * every, {})[verdict] = n
        return [
            VerdictCounts(start, min(last, start + every - 1), counts)
            for start, counts in spans.items()
        ]

    def groups(self, run_id: str, **wanted: Unpack[GroupsWanted]) -> GroupPage:
        """One page of the groups that meet every condition. search: see search.py."""
        if unknown := wanted.keys() - GroupsWanted.__annotations__.keys():
            raise TypeError(f"groups() has no condition {', '.join(sorted(unknown))}")
        sort, descending = wanted.get("sort", "step"), wanted.get("descending", True)
        if sort not in SORTS:
            raise StudioError(
                f"sort = {str(sort)!r:.80}: groups are not sorted by that. "
                f"Known: {', '.join(SORTS)}."
            )
        where, values = _group_conditions(run_id, wanted)
        first = max(0, integer(wanted.get("offset", 0)))
        last = first + max(0, min(integer(wanted.get("limit", 50)), MAX_PAGE))
        direction = "DESC" if descending else "ASC"
        order = SORTS[sort].format(direction)
        order += ", g.position" if sort == "step" else f", g.step {direction}, g.position"
        if query := text(wanted.get("search") or "").strip():
            counted, unsearched = None, 0  # counted: read no more groups than this; None: all
            if sort == "step" and fulltext.is_common(self._readers, query):
                sql, more_values = fulltext.read(query)
                counted = last + COUNTED
            else:
                sql, more_values, unsearched = fulltext.condition(
                    self._readers, self._writer, query
                )
            # One query for the page and the total: a search is too slow to run twice.
            found = self._readers.all(
                f"SELECT g.id FROM groups g WHERE {where} AND {sql} ORDER BY {order} LIMIT ?",
                (*values, *more_values, -1 if counted is None else counted + 1),
            )
            more = counted is not None and len(found) > counted
            ids = [row["id"] for row in found[first:last]]
            return GroupPage(self._summaries(ids), len(found) - more, unsearched, more)
        found = self._readers.all(
            f"SELECT g.id FROM groups g WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?",
            (*values, last - first, first),
        )
        total = self._readers.all(f"SELECT COUNT(*) FROM groups g WHERE {where}", values)[0][0]
        return GroupPage(self._summaries([row["id"] for row in found]), total)

    def _summaries(self, group_ids: list[int]) -> list[GroupSummary]:
        rollouts: dict[int, list[sqlite3.Row]] = {group_id: [] for group_id in group_ids}
        for row in self._in(
            "SELECT group_id, reward, substr(text, 1, ?) AS text FROM rollouts WHERE group_id IN "
            "({}) ORDER BY group_id, position",
            group_ids,
            EXCERPT + 1,
        ):
            rollouts[row["group_id"]].append(row)
        groups = {
            row["id"]: row
            for row in self._in(
                "SELECT id, step, position, prompt, answer, reward_mean, reward_std, verdict, kind "
                "FROM groups WHERE id IN ({})",
                group_ids,
            )
        }
        return [
            _summary(groups[group_id], rollouts[group_id])
            for group_id in group_ids
            if group_id in groups
        ]

    def _with_rollouts(self, groups: list[sqlite3.Row]) -> list[GroupRow]:
        rollouts: dict[int, list[RolloutRow]] = {group["id"]: [] for group in groups}
        turns = self._turns(list(rollouts))
        for row in self._in(
            "SELECT * FROM rollouts WHERE group_id IN ({}) ORDER BY group_id, position",
            list(rollouts),
        ):
            with decoding(self._writer.path):
                scores = json.loads(row["scores"])
            rollouts[row["group_id"]].append(
                RolloutRow(
                    **{**row, "scores": scores, "edited": bool(row["edited"])},
                    turns=tuple(turns.get(row["id"], ())),
                )
            )
        with decoding(self._writer.path):
            before = [json.loads(group["before"]) for group in groups]
        return [
            GroupRow(**{**group, "before": earlier}, rollouts=tuple(rollouts[group["id"]]))
            for group, earlier in zip(groups, before, strict=True)
        ]

    def _turns(self, groups: Sequence[int]) -> dict[int, list[Turn]]:
        """The turns of these groups' rollouts, by the rollout's id."""
        turns: dict[int, list[Turn]] = {}
        for row in self._in(
            "SELECT t.* FROM turns t JOIN rollouts r ON r.id = t.rollout_id "
            "WHERE r.group_id IN ({}) ORDER BY t.rollout_id, t.position",
            groups,
        ):
            with decoding(self._writer.path):
                values = {**row, "role": TurnRole(row["role"])}
            del values["position"]
            turns.setdefault(values.pop("rollout_id"), []).append(Turn(**values))
        return turns

    def _in(self, sql: str, ids: Sequence[int], *before: Any) -> list[sqlite3.Row]:
        return self._readers.all(sql.format(", ".join("?" * len(ids))), (*before, *ids))

    def iter_groups(
        self, run_id: str, chunk: int = 200, kind: str = GroupKind.TRAINING
    ) -> Iterator[GroupRow]:
        """Every group of a run with its rollouts, in order. Reads `chunk` groups at a time."""
        step, position = -1, -1
        while rows := self._readers.all(
            "SELECT * FROM groups WHERE run_id = ? AND kind = ? AND (step, position) > (?, ?) "
            "ORDER BY step, position LIMIT ?",
            (text(run_id), text(kind), step, position, chunk),
        ):
            yield from self._with_rollouts(rows)
            step, position = rows[-1]["step"], rows[-1]["position"]


def _group_conditions(run_id: str, wanted: GroupsWanted) -> tuple[str, list[Any]]:
    where = ["g.run_id = ?", "g.kind = ?"]
    values: list[Any] = [text(run_id), text(wanted.get("kind", GroupKind.TRAINING))]
    for name, condition in GROUP_CONDITIONS.items():
        value = wanted.get(name)
        if value is None or value == "":
            continue
        where.append(condition)
        if name == "verdict":
            value = text(value)
        elif name.startswith("step"):
            value = integer(value)
        values.append(value)
    return " AND ".join(where), values


def _summary(group: sqlite3.Row, rollouts: list[sqlite3.Row]) -> GroupSummary:
    scored = [r for r in rollouts if r["reward"] is not None]
    best = max(scored, key=lambda r: r["reward"])["text"] if scored else None
    worst = min(scored, key=lambda r: r["reward"])["text"] if scored else None
    return GroupSummary(
        **group,
        rewards=tuple(r["reward"] for r in rollouts),
        best_text=_excerpt(best),
        worst_text=_excerpt(worst),
    )


def _excerpt(full: str | None) -> str | None:
    return full if full is None or len(full) <= EXCERPT else full[: EXCERPT - 1] + "…"
