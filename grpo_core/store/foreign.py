"""Runs of other trainers: where they come from, and their steps, which may come in parts."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

from grpo_core.config import RunConfig
from grpo_core.store import search
from grpo_core.store.plain import text, to_json
from grpo_core.store.queries import source_of
from grpo_core.store.recorder import Recorder
from grpo_core.store.rows import Source
from grpo_core.store.store import Store
from grpo_core.types import STEP_METRICS, Event, GroupKind, RunStatus


@dataclass(frozen=True, slots=True)
class Part:
    """A step, or one part of it. digest: of all that it holds."""

    step: int
    part: int
    digest: str
    disagreements: int = 0  # groups whose recorded advantages differ from the recomputed


def run_of(store: Store, key: str) -> str | None:
    """The id of the run with this source key."""
    rows = store._readers.all(
        "SELECT id FROM runs WHERE json_extract(source, '$.key') = ? ORDER BY created_at",
        (text(key),),
    )
    return rows[0]["id"] if rows else None


def of_format(store: Store, format: str) -> dict[str, Source]:
    """Run id -> source of the runs that were read in this format, the oldest first."""
    rows = store._readers.all(
        "SELECT id, source FROM runs WHERE json_extract(source, '$.format') = ? "
        "ORDER BY created_at",
        (text(format),),
    )
    return {row["id"]: source_of(row["source"]) for row in rows}


def set_key(store: Store, run_id: str, key: str) -> None:
    """The run's source is found under another key from now on."""
    with store.writing() as writer, writer.transaction() as db:
        db.execute(
            "UPDATE runs SET source = json_set(source, '$.key', ?1) "
            "WHERE id = ?2 AND json_extract(source, '$.key') != ?1",
            (text(key), text(run_id)),
        )


def create(
    store: Store, config: RunConfig, name: str, source: Source, num_steps: int | None
) -> str:
    """A run of another trainer, which works on no run here until somebody says so.

    num_steps: None: not known.
    """
    with store.writing() as writer, writer.transaction() as db:
        run_id = store.create_run(config, name, status=RunStatus.STOPPED)
        db.execute("UPDATE runs SET num_steps = ? WHERE id = ?", (num_steps, run_id))
        _set_source(db, run_id, source)
    return run_id


def describe(store: Store, run_id: str, config: RunConfig, source: Source) -> None:
    """Replace what is known of a run: its configuration and its source."""
    with store.writing() as writer, writer.transaction() as db:
        _set_source(db, run_id, source)
        db.execute(
            "UPDATE runs SET config = ?, revision = revision + 1 WHERE id = ?",
            (text(config.model_dump_json()), text(run_id)),
        )


def _set_source(db: sqlite3.Connection, run_id: str, source: Source) -> None:
    db.execute("UPDATE runs SET source = ? WHERE id = ?", (to_json(asdict(source)), text(run_id)))


def sizes(store: Store, run_id: str) -> tuple[int, int, int]:
    """How many steps, groups of any kind, and completions the run has."""
    return tuple(
        store._readers.all(sql, (text(run_id),))[0][0]
        for sql in (
            "SELECT COUNT(*) FROM (SELECT step FROM parts WHERE run_id = ? GROUP BY step)",
            "SELECT COALESCE(SUM(num_groups), 0) FROM parts WHERE run_id = ?",
            "SELECT COUNT(*) FROM groups g JOIN rollouts r ON r.group_id = g.id WHERE g.run_id = ?",
        )
    )


def reward_as_score(store: Store, run_id: str, name: str) -> None:
    """Give every stored completion its reward as the score `name`."""
    with store.writing() as writer, writer.transaction() as db:
        db.execute(
            "UPDATE rollouts SET scores = json_set(scores, '$.' || ?, reward) WHERE group_id IN "
            "(SELECT id FROM groups WHERE run_id = ?)",
            (text(name), text(run_id)),
        )


class PartRecorder(Recorder):
    """Writes a run of another trainer, part by part; the parts of a step may come in any order.

    A part that comes again replaces the earlier one, and no other.
    """

    # What a later part does not say stays as an earlier one said it.
    INSERT_STEP = (
        f"INSERT INTO steps (run_id, step, {', '.join(STEP_METRICS)}) "
        f"VALUES (?, ?{', ?' * len(STEP_METRICS)}) ON CONFLICT (run_id, step) DO UPDATE SET "
        + ", ".join(f"{name} = COALESCE(excluded.{name}, {name})" for name in STEP_METRICS)
    )

    def __init__(self, store: Store, run_id: str):
        super().__init__(store, run_id)
        self._part = Part(0, 0, "")

    def digest(self, step: int, part: int) -> str | None:
        """The digest of this part as it was written; None if it was not."""
        with self.store.writing() as writer, writer.transaction() as db:
            row = db.execute(
                "SELECT digest FROM parts WHERE run_id = ? AND step = ? AND part = ?",
                (self.run_id, step, part),
            ).fetchone()
        return row and row[0]

    def put(self, part: Part, events: Sequence[Event]) -> None:
        """Write the events of a part, all or none of them."""
        self._part = part
        with self.store.writing() as writer, writer.transaction() as db:
            for event in events:
                self(event)
            # A part without groups is there too.
            db.execute(
                "INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?, 0, 0)",
                (self.run_id, part.step, GroupKind.TRAINING, part.part, part.digest),
            )
            db.execute(
                "UPDATE parts SET digest = ? WHERE run_id = ? AND step = ? AND part = ?",
                (part.digest, self.run_id, part.step, part.part),
            )

    def parts(self, step: int) -> list[tuple[int, int, int]]:
        """The parts of a step: number, place of the first group of training, how many groups."""
        with self.store.writing() as writer, writer.transaction() as db:
            rows = db.execute(
                "SELECT part, num_groups FROM parts WHERE run_id = ? AND step = ? "
                "AND kind = 'training' ORDER BY part",
                (self.run_id, step),
            ).fetchall()
        places = [0, *accumulate(size for _, size in rows)]
        return [(part, first, size) for (part, size), first in zip(rows, places, strict=False)]

    def disagreements(self) -> int:
        with self.store.writing() as writer, writer.transaction() as db:
            return db.execute(
                "SELECT COALESCE(SUM(disagreements), 0) FROM parts WHERE run_id = ?", (self.run_id,)
            ).fetchone()[0]

    def source(self) -> Source:
        """The run's source as it is stored."""
        with self.store.writing() as writer, writer.transaction() as db:
            stored = db.execute("SELECT source FROM runs WHERE id = ?", (self.run_id,)).fetchone()
        return source_of(stored[0])

    def _make_room(
        self, db: sqlite3.Connection, step: int, kind: GroupKind, num_groups: int
    ) -> int:
        """Delete the groups of this part and move those of later parts. Returns where it begins."""
        part, place = self._part, (self.run_id, step, kind)
        first, num_old = (
            db.execute(
                "SELECT COALESCE(SUM(num_groups), 0) FROM parts WHERE run_id = ? AND step = ? "
                f"AND kind = ? AND part {compared} ?",
                (*place, part.part),
            ).fetchone()[0]
            for compared in ("<", "=")
        )
        old = (*place, first, first + num_old)
        if num_old:
            db.execute(
                "DELETE FROM groups WHERE run_id = ? AND step = ? AND kind = ? AND position >= ? "
                "AND position < ?",
                old,
            )
            search.forget(db)
        if by := num_groups - num_old:
            # By way of negative numbers: no two groups ever have one place.
            db.execute(
                "UPDATE groups SET position = -1 - position - ? WHERE run_id = ? AND step = ? "
                "AND kind = ? AND position >= ?",
                (by, *place, first + num_old),
            )
            db.execute(
                "UPDATE groups SET position = -1 - position WHERE run_id = ? AND step = ? "
                "AND kind = ? AND position < 0",
                place,
            )
        training = kind == GroupKind.TRAINING
        db.execute(
            "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*place, part.part, part.digest, num_groups, part.disagreements if training else 0),
        )
        return first
