"""Queries of runs, metrics, alerts and checkpoints. Read-only; every result comes whole."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_core.errors import NotFound, StoreError
from grpo_core.store.downsample import min_max, stride
from grpo_core.store.group_queries import GroupQueries
from grpo_core.store.plain import integer, text
from grpo_core.store.problems import decoding
from grpo_core.store.rows import CheckpointRow, Cursor, RunRow, Source
from grpo_core.types import STEP_METRICS, Intervention, Notice, Phase, RunStatus


class Queries(GroupQueries):
    """The reading half of Store."""

    path: Path

    # ---- runs -----------------------------------------------------------------------------------

    def cursor(self, run_id: str) -> Cursor:
        """The change token of a run.

        If it is the last one, nothing needs to be drawn. Raises NotFound.
        """
        rows = self._readers.all("SELECT revision, status FROM runs WHERE id = ?", (text(run_id),))
        if not rows:
            raise no_run(run_id)
        with decoding(self.path):
            return Cursor(rows[0]["revision"], self._status(rows[0]["status"]))

    def runs_token(self) -> tuple[Any, ...]:
        """Differs whenever a run was added, changed, renamed or deleted."""
        return tuple(tuple(row) for row in self._readers.all("SELECT id, revision FROM runs"))

    def runs(self) -> list[RunRow]:
        """Every run with its summary, newest first; the example after all others."""
        return [
            self._run(row)
            for row in self._readers.all(
                "SELECT * FROM runs ORDER BY example, created_at DESC, rowid DESC"
            )
        ]

    def run(self, run_id: str) -> RunRow:
        rows = self._readers.all("SELECT * FROM runs WHERE id = ?", (text(run_id),))
        if not rows:
            raise no_run(run_id)
        return self._run(rows[0])

    def _run(self, row: sqlite3.Row) -> RunRow:
        with decoding(self.path):
            values: Mapping[str, Any] = {
                **row,
                "status": self._status(row["status"]),
                "phase": row["phase"] and Phase(row["phase"]),
                "config": json.loads(row["config"]),
                "env": row["env"] and json.loads(row["env"]),
                "tags": tuple(json.loads(row["tags"])),
                "example": bool(row["example"]),
                "source": row["source"] and source_of(row["source"]),
            }
        return RunRow(**values)

    def _status(self, stored: str) -> RunStatus:
        """The status of a run. A file that may not be written has no process with a live run."""
        status = RunStatus(stored)
        if self._writer.damage and status.is_live and status is not RunStatus.QUEUED:
            return RunStatus.INTERRUPTED
        return status

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with the file, in its words; empty if nothing is."""
        try:
            found = [row[0] for row in self._readers.all("PRAGMA integrity_check")]
            if found == ["ok"]:
                found = [
                    f"{row['table']} row {row['rowid']} refers to a missing {row['parent']}"
                    for row in self._readers.all("PRAGMA foreign_key_check")
                ]
            return found
        except StoreError as problem:  # so damaged that SQLite cannot even look at all of it
            return [str(problem)]

    # ---- numbers --------------------------------------------------------------------------------

    def steps(self, run_id: str, max_points: int = 1000) -> list[dict[str, Any]]:
        """One dict a step: "step" and every field of StepMetrics.

        More than `max_points` are thinned, see `stride`.
        """
        run_id = text(run_id)
        first, last = self._readers.all(
            "SELECT (SELECT MIN(step) FROM steps WHERE run_id = :run), "
            "(SELECT MAX(step) FROM steps WHERE run_id = :run)",
            {"run": run_id},
        )[0]
        if first is None:
            return []
        every = stride(first, last, max_points)
        rows = self._readers.all(
            f"SELECT step, {', '.join(STEP_METRICS)} FROM steps WHERE run_id = ? "
            "AND ((step - ?) % ? = 0 OR step = ?) ORDER BY step",
            (run_id, first, every, last),
        )
        # Not dict(row): it looks every name up, which is 8 times slower.
        return [dict(zip(("step", *STEP_METRICS), row, strict=True)) for row in rows]

    def steps_with_spikes(
        self, run_id: str, columns: Sequence[str], max_points: int
    ) -> list[dict[str, Any]]:
        """Like steps, but a long run keeps the extreme rows of each stretch: no spike is lost."""
        assert set(columns) <= set(STEP_METRICS)
        rows = self._readers.all(
            f"SELECT step, {', '.join(columns)} FROM steps WHERE run_id = ? ORDER BY step",
            (text(run_id),),
        )
        if len(rows) <= max_points:
            return self.steps(run_id, max_points)
        kept = {
            row[0]
            for n in range(1, len(columns) + 1)
            for row in min_max(rows, [row[n] for row in rows], max_points // len(columns))
        }
        rows = self._readers.all(
            f"SELECT step, {', '.join(STEP_METRICS)} FROM steps WHERE run_id = ? AND step IN "
            "(SELECT value FROM json_each(?)) ORDER BY step",
            (text(run_id), json.dumps(sorted(kept))),
        )
        return [dict(zip(("step", *STEP_METRICS), row, strict=True)) for row in rows]

    def metrics_with_spikes(
        self, run_id: str, max_points: int
    ) -> dict[str, list[tuple[int, float | None]]]:
        """Like metrics, but a long series keeps the lowest and highest value of every stretch."""
        whole = self.metrics(run_id, max_points=2**62)
        return {
            name: min_max(points, [v for _, v in points], max_points)
            for name, points in whole.items()
        }

    def steps_between(self, run_id: str, first: int, last: int) -> list[dict[str, Any]]:
        """The rows of `steps` from first to last, bounds included, unthinned."""
        rows = self._readers.all(
            f"SELECT step, {', '.join(STEP_METRICS)} FROM steps WHERE run_id = ? AND step "
            "BETWEEN ? AND ? ORDER BY step",
            (text(run_id), integer(first), integer(last)),
        )
        return [dict(zip(("step", *STEP_METRICS), row, strict=True)) for row in rows]

    def metric_names(self, run_id: str) -> list[str]:
        """The names of the open metrics of a run, sorted.

        Skips through the index from name to name.
        """
        rows = self._readers.all(
            """
            WITH RECURSIVE names(name) AS (
              SELECT MIN(name) FROM metrics WHERE run_id = :run
              UNION ALL
              SELECT (SELECT MIN(m.name) FROM metrics m WHERE m.run_id = :run AND m.name >
              names.name) FROM names WHERE name NOT NULL)
            SELECT name FROM names WHERE name NOT NULL""",
            {"run": text(run_id)},
        )
        return [row["name"] for row in rows]

    def metrics(
        self, run_id: str, names: Sequence[str] | None = None, max_points: int = 1000
    ) -> dict[str, list[tuple[int, float | None]]]:
        """Name -> its (step, value) pairs in order, thinned like steps. Empty without values."""
        names = self.metric_names(run_id) if names is None else names
        return {name: self._metric(text(run_id), text(name), max_points) for name in names}

    def _metric(self, run_id: str, name: str, max_points: int) -> list[tuple[int, float | None]]:
        count, first, last = self._readers.all(
            "SELECT COUNT(*), MIN(step), MAX(step) FROM metrics WHERE run_id = ? AND name = ?",
            (run_id, name),
        )[0]
        every = stride(first, last, max_points) if count > max_points else 1
        rows = self._readers.all(
            "SELECT step, value FROM metrics WHERE run_id = ? AND name = ? "
            "AND ((step - ?) % ? = 0 OR step = ?) ORDER BY step",
            (run_id, name, first, every, last),
        )
        return [(row["step"], row["value"]) for row in rows]

    def iter_numbers(
        self, run_id: str, names: Sequence[str], chunk: int = 1000
    ) -> Iterator[tuple[int, list[float | None]]]:
        """Every step in order with its fields of StepMetrics and the open metrics `names`."""
        run_id, after = text(run_id), -1
        while True:
            empty: list[float | None] = [None] * (len(STEP_METRICS) + len(names))
            steps = self._readers.all(
                "SELECT step FROM (SELECT step FROM steps WHERE run_id = :run UNION SELECT step "
                "FROM metrics "
                "WHERE run_id = :run) WHERE step > :after ORDER BY step LIMIT :chunk",
                {"run": run_id, "after": after, "chunk": chunk},
            )
            if not steps:
                return
            table = {row["step"]: empty.copy() for row in steps}
            span = (run_id, after + 1, steps[-1]["step"])
            for row in self._readers.all(
                f"SELECT step, {', '.join(STEP_METRICS)} FROM steps WHERE run_id = ? AND step "
                "BETWEEN ? AND ?",
                span,
            ):
                table[row["step"]][: len(STEP_METRICS)] = row[1:]
            for column, name in enumerate(names, len(STEP_METRICS)):
                for step, value in self._readers.all(
                    "SELECT step, value FROM metrics WHERE run_id = ? AND step BETWEEN ? AND ? "
                    "AND name = ?",
                    (*span, name),
                ):
                    table[step][column] = value
            yield from table.items()
            after = steps[-1]["step"]

    # ---- alerts ---------------------------------------------------------------------------------

    def alerts(self, run_id: str) -> list[Notice]:
        """The alerts of a run that nobody dismissed, in the order written: worst first."""
        rows = self._readers.all(
            "SELECT * FROM alerts WHERE run_id = ? AND dismissed_at IS NULL ORDER BY id",
            (text(run_id),),
        )
        return [
            Notice(
                r["code"],
                r["severity"],
                r["step"],
                r["message"],
                json.loads(r["evidence"] or "{}"),
                r["group_id"],
                r["advice"] or "",
            )
            for r in rows
        ]

    def dismissed(self, run_id: str) -> set[str]:
        """The codes of alerts that a person dismissed."""
        return {
            r["code"]
            for r in self._readers.all(
                "SELECT code FROM alerts WHERE run_id = ? AND dismissed_at NOT NULL",
                (text(run_id),),
            )
        }

    def group_ref_of(self, group_id: int) -> tuple[int, int] | None:
        """Step and position of a group."""
        rows = self._readers.all(
            "SELECT step, position FROM groups WHERE id = ?", (integer(group_id),)
        )
        return (rows[0]["step"], rows[0]["position"]) if rows else None

    def interventions(self, run_id: str) -> list[Intervention]:
        """What people did to a run, in order of steps."""
        rows = self._readers.all(
            "SELECT step, kind, value, field, group_position, rollout_position FROM interventions "
            "WHERE run_id = ? ORDER BY step, id",
            (text(run_id),),
        )
        return [Intervention(*row) for row in rows]

    def edited(self, run_id: str, step: int) -> tuple[tuple[int, float | None], ...]:
        """(rollout id, reward) of every edited rollout of a step.

        Groups are rewritten with the same ids, so this tells a rewritten step apart.
        """
        return tuple(
            (row["id"], row["reward"])
            for row in self._readers.all(
                "SELECT r.id, r.reward FROM groups g JOIN rollouts r ON r.group_id = g.id WHERE "
                "g.run_id = ? AND g.kind = 'training' AND g.step = ? AND r.edited ORDER BY r.id",
                (text(run_id), integer(step)),
            )
        )

    def checkpoints(self, run_id: str) -> list[CheckpointRow]:
        """The saved states of a run, oldest first."""
        rows = self._readers.all(
            "SELECT step, path, bytes, sha256, seconds FROM checkpoints WHERE run_id = ? "
            "ORDER BY step",
            (text(run_id),),
        )
        return [CheckpointRow(**{**row, "path": self.path.parent / row["path"]}) for row in rows]

    def saving_seconds(self, run_id: str) -> float | None:
        """How long the slowest save of a run took; None: it has not saved, or in older versions."""
        known = [row.seconds for row in self.checkpoints(run_id) if row.seconds is not None]
        return max(known, default=None)


def source_of(stored: str) -> Source:
    """A Source from its JSON."""
    values = json.loads(stored)
    lists = {name: tuple(values[name]) for name in ("recorded", "absent")}
    marks = tuple(tuple(mark) for mark in values.get("marks", ()))
    return Source(**values | lists | {"marks": marks})


def no_run(run_id: str) -> NotFound:
    return NotFound(
        f"run {text(run_id)!r:.80} is not in the store. It may have been deleted; choose another "
        "run."
    )
