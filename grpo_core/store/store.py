"""Store: create, change and delete runs. queries.py reads; recorder.py writes events."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from grpo_core import checkpoint_files
from grpo_core.config import RunConfig
from grpo_core.errors import StoreBusy, StoreError, StudioError
from grpo_core.store import schema, search
from grpo_core.store.connection import LOCK_SECONDS, Readers, Writer, file_bytes
from grpo_core.store.plain import text, to_json
from grpo_core.store.problems import explain
from grpo_core.store.queries import Queries, no_run
from grpo_core.store.schema import SUMMARY
from grpo_core.types import Notice, RunStatus

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
LIVE = tuple(s for s in RunStatus if s.is_live)
_IS_LIVE = f"status IN ({', '.join(repr(s.value) for s in LIVE)})"


class Store(Queries):
    """One SQLite file of runs. Any process may read; one at a time writes, see `writing`."""

    def __init__(self, path: str | Path):
        """Open or create the file; copy and migrate an older one. Raises StoreError."""
        self.path = Path(path)
        try:
            # A symbolic link and its target are one file and have one lock.
            real = Path(os.path.realpath(path))
            self._writer = Writer.of(real)
            schema.prepare(real, self._writer)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise explain(self.path, error) from error
        super().__init__(Readers(real), self._writer)

    @property
    def trouble(self) -> str:
        """Why this process cannot write to the file at present, in one line; empty if it can."""
        return self._writer.trouble

    def close(self) -> None:
        """Close the idle reading connections. Whoever is writing goes on."""
        self._readers.close()

    # ---- who writes -----------------------------------------------------------------------------

    @contextmanager
    def writing(self, wait_seconds: float = LOCK_SECONDS) -> Iterator[Writer]:
        """Hold the file, counted, across threads; then `writer.transaction()` writes.

        Raises StoreBusy if another process holds it. A process also holds the file as long as it
        has a live run: from create_run, or a live set_status, to the status that ends the run.
        """
        self._writer.hold(wait_seconds)
        try:
            yield self._writer
        finally:
            self._writer.release()

    def recover(self) -> list[str]:
        """Mark live runs whose process died as interrupted; return their ids.

        Does nothing while another process writes. Queued runs lost nothing and keep waiting. A
        process with a live run holds the file: if we get it, a live run that is not ours has no
        process. So neither process ids, which are reused, nor clocks, which jump, are needed.
        """
        try:
            with self.writing(wait_seconds=0) as writer, writer.transaction() as db:
                live = [
                    row[0]
                    for row in db.execute(
                        f"SELECT id FROM runs WHERE {_IS_LIVE} AND status != 'queued'"
                    ).fetchall()
                ]
                orphans = [run_id for run_id in live if run_id not in writer.owned]
                for run_id in orphans:
                    db.execute(
                        "UPDATE runs SET status = ?, ended_at = COALESCE(heartbeat_at, ?), phase "
                        "= NULL, revision = revision + 1 "
                        "WHERE id = ?",
                        (RunStatus.INTERRUPTED, time.time(), run_id),
                    )
                return orphans
        except StoreBusy:
            return []

    def adopt_queued(self) -> list[str]:
        """Take over queued runs whose process is gone, oldest first.

        None while another one writes.
        """
        try:
            with self.writing(wait_seconds=0) as writer, writer.transaction() as db:
                rows = db.execute(
                    "SELECT id FROM runs WHERE status = 'queued' ORDER BY created_at, rowid"
                ).fetchall()
                orphans = [row[0] for row in rows if row[0] not in writer.owned]
                for run_id in orphans:
                    writer.own(run_id)
                return orphans
        except StoreBusy:
            return []

    def disown(self, run_id: str) -> None:
        """Stop working on the run in this process; its row stays as it is."""
        self._writer.disown(run_id)

    # ---- runs -----------------------------------------------------------------------------------

    def create_run(
        self,
        config: RunConfig,
        name: str,
        *,
        status: RunStatus = RunStatus.QUEUED,
        parent: tuple[str, int] | None = None,
        breakpoints: str = "",
    ) -> str:
        """Create a run; return its id, e.g. "20261120-213015-a3f9" (UTC).

        parent: the run and step that it branches from. breakpoints: for when it is resumed.
        """
        status, now = RunStatus(status), time.time()
        with self.writing() as writer:
            with writer.transaction() as db:
                run_id = _free_id(db, now)
                db.execute(
                    "INSERT INTO runs (id, name, status, revision, created_at, started_at, "
                    "ended_at, num_steps, steps_done, model, task, "
                    "rubric, config, breakpoints, parent_run_id, parent_step) "
                    "VALUES (?, ?, ?, 1, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        run_id,
                        text(name).strip() or run_id,
                        status,
                        now,
                        *_times(status, now),
                        config.train.steps,
                        text(config.model.name),
                        text(config.task.name),
                        text(config.rubric.name),
                        text(config.model_dump_json()),
                        text(breakpoints),
                        *(parent or (None, None)),
                    ),
                )
            self._claim(writer, run_id, status)
        return run_id

    def set_status(self, run_id: str, status: RunStatus, error: str | None = None) -> None:
        """A live status sets started_at once and clears ended_at and error; ending sets ended_at.

        The time between the end of a run and its resumption, queueing included, counts as waiting.
        """
        status = RunStatus(status)
        now = time.time()
        started_at, ended_at = _times(status, now)
        with self.writing() as writer:
            with writer.transaction() as db:
                done = db.execute(
                    "UPDATE runs SET status = :status, error = :error, revision = revision + 1, "
                    "started_at = COALESCE(started_at, :started), ended_at = :ended, "
                    "waited_seconds = waited_seconds + CASE WHEN :goes AND started_at NOT NULL "
                    "THEN MAX(0, :now - COALESCE(waiting_since, ended_at, :now)) ELSE 0 END, "
                    "waiting_since = CASE WHEN :goes OR started_at IS NULL THEN NULL ELSE "
                    "COALESCE(waiting_since, ended_at) END, "
                    "heartbeat_at = CASE WHEN :goes THEN :now ELSE heartbeat_at END, phase = "
                    "CASE WHEN :live THEN phase END WHERE id = :run",
                    {
                        "status": status,
                        "error": None if error is None else text(error),
                        "started": started_at,
                        "ended": ended_at,
                        "now": now,
                        "goes": started_at is not None and status is not RunStatus.PAUSED,
                        "live": status.is_live,
                        "run": text(run_id),
                    },
                )
                if not done.rowcount:
                    raise no_run(run_id)
            self._claim(writer, run_id, status)

    def rewind(self, run_id: str, step: int) -> None:
        """Delete what was recorded after `step` (-1: everything), checkpoints too.

        Interventions stay: a resumed run meets them again in their step.
        """
        with self.writing() as writer:
            with writer.transaction() as db:
                span = (text(run_id), step)
                if db.execute("DELETE FROM groups WHERE run_id = ? AND step > ?", span).rowcount:
                    search.forget(db)
                for table in ("steps", "alerts", "checkpoints"):
                    db.execute(f"DELETE FROM {table} WHERE run_id = ? AND step > ?", span)
                db.execute(
                    "DELETE FROM metrics WHERE run_id = ? AND step > ?",
                    span,
                )
                db.execute(SUMMARY, (text(run_id),))
                db.execute(
                    "UPDATE runs SET step = ?, revision = revision + 1 WHERE id = ?",
                    (max(step, 0), text(run_id)),
                )
            for later, path in checkpoint_files.saved_steps(self.checkpoint_folder(run_id)).items():
                if later > step:
                    checkpoint_files.remove(path)

    def forget_checkpoint(self, run_id: str, step: int) -> None:
        """Delete a checkpoint's row; its folder is the caller's."""
        with self.writing() as writer, writer.transaction() as db:
            db.execute(
                "DELETE FROM checkpoints WHERE run_id = ? AND step = ?", (text(run_id), step)
            )

    def is_free(self) -> bool:
        """Whether no process works on a run of this file."""
        try:
            with self.writing(wait_seconds=0) as writer:
                return not writer.owned
        except StoreError:  # another process has it, or it is damaged
            return False

    @staticmethod
    def is_id(name: str) -> bool:
        return _ID.fullmatch(name) is not None

    def checkpoint_folder(self, run_id: str) -> Path:
        """Where the checkpoints of a run are: beside the file, so that both move together."""
        return self._beside("checkpoints", run_id)

    def log_file(self, run_id: str) -> Path:
        return self._beside("logs", f"{run_id}.jsonl")

    def _beside(self, kind: str, name: str) -> Path:
        if not self.is_id(name.removesuffix(".jsonl")):  # an id is never a path
            raise no_run(name)
        return Path(f"{self.path}.{kind}") / name

    def _claim(self, writer: Writer, run_id: str, status: RunStatus) -> None:
        """A live status makes this process own the run, and hold the file, until its end."""
        if status.is_live:
            writer.own(run_id)
        else:
            writer.disown(run_id)

    def rename(self, run_id: str, name: str) -> None:
        name = text(name).strip()
        if not name:
            raise StudioError("name = '': a run needs a name. Type at least one character.")
        with self.writing() as writer, writer.transaction() as db:
            done = db.execute(
                "UPDATE runs SET name = ?, revision = revision + 1 WHERE id = ?",
                (name, text(run_id)),
            )
            if not done.rowcount:
                raise no_run(run_id)

    def annotate(self, run_id: str, tags: Sequence[str], note: str) -> None:
        """Replace the tags and the note of a run. Empty and repeated tags are dropped."""
        words = list(dict.fromkeys(word for tag in tags if (word := text(tag).strip())))
        with self.writing() as writer, writer.transaction() as db:
            done = db.execute(
                "UPDATE runs SET tags = ?, note = ?, revision = revision + 1 WHERE id = ?",
                (to_json(words), text(note).strip(), text(run_id)),
            )
            if not done.rowcount:
                raise no_run(run_id)

    def add_intervention(self, run_id: str, kind: str) -> None:
        """A person gave the run a command, or its workers were lost: see Intervention."""
        with self.writing() as writer, writer.transaction() as db:
            db.execute(
                "INSERT INTO interventions (run_id, step, kind, created_at) "
                "SELECT id, COALESCE(step, 0), ?, ? FROM runs WHERE id = ?",
                (text(kind), time.time(), text(run_id)),
            )
            db.execute("UPDATE runs SET revision = revision + 1 WHERE id = ?", (text(run_id),))

    def set_breakpoints(self, run_id: str, conditions: str) -> None:
        """Store the breakpoints of a run, for when it is resumed."""
        with self.writing() as writer, writer.transaction() as db:
            db.execute(
                "UPDATE runs SET breakpoints = ?, revision = revision + 1 WHERE id = ?",
                (text(conditions), text(run_id)),
            )

    def set_alerts(self, run_id: str, notices: Sequence[Notice]) -> None:
        """Replace the advisor's alerts of a run; dismissed ones stay dismissed."""
        run_id = text(run_id)
        with self.writing() as writer, writer.transaction() as db:
            # Notices of graders and of a cluster come as events, not from the advisor.
            db.execute(
                "DELETE FROM alerts WHERE run_id = ? AND dismissed_at IS NULL "
                "AND code NOT LIKE '%/%'",
                (run_id,),
            )
            dismissed = {
                row[0]
                for row in db.execute(
                    "SELECT code FROM alerts WHERE run_id = ?", (run_id,)
                ).fetchall()
            }
            groups = {
                row[0]
                for row in db.execute(
                    f"SELECT id FROM groups WHERE id IN ({', '.join('?' * len(notices))})",
                    [n.group_id for n in notices],
                ).fetchall()
            }
            db.executemany(
                _INSERT_ALERT,
                [
                    (
                        run_id,
                        n.step,
                        text(n.code),
                        text(n.severity),
                        text(n.message),
                        n.group_id if n.group_id in groups else None,
                        to_json(n.evidence),
                        text(n.advice),
                        None,
                    )
                    for n in notices
                    if n.code not in dismissed
                ],
            )

    def dismiss(self, run_id: str, notice: Notice) -> None:
        """Do not show this diagnosis of this run again."""
        with self.writing() as writer, writer.transaction() as db:
            db.execute(
                "DELETE FROM alerts WHERE run_id = ? AND code = ?",
                (text(run_id), text(notice.code)),
            )
            db.execute(
                _INSERT_ALERT,
                (
                    text(run_id),
                    notice.step,
                    text(notice.code),
                    text(notice.severity),
                    text(notice.message),
                    None,
                    to_json(notice.evidence),
                    text(notice.advice),
                    time.time(),
                ),
            )
            db.execute("UPDATE runs SET revision = revision + 1 WHERE id = ?", (text(run_id),))

    def delete(self, run_id: str) -> int:
        """Delete a run and give the space back to the disk. Returns the bytes freed."""
        with self.writing() as writer:
            self.recover()  # holding the file, a live run of a dead process is known to be dead
            if self.cursor(run_id).status.is_live and run_id in writer.owned:
                raise StudioError(f"run {run_id!r} is still going. Stop it first, then delete it.")
            with writer.transaction() as db:
                page_bytes, free_before = _pragma(db, "page_size"), _pragma(db, "freelist_count")
                search.forget(db)
                db.execute("DELETE FROM runs WHERE id = ?", (text(run_id),))
                freed = (_pragma(db, "freelist_count") - free_before) * page_bytes
            writer.shrink()
        folder = self.checkpoint_folder(run_id)
        freed += checkpoint_files.folder_bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        for log in self.log_file(run_id).parent.glob(f"{run_id}.jsonl*"):
            freed += log.stat().st_size
            log.unlink(missing_ok=True)
        return max(0, freed)

    def unlisted(self) -> list[str]:
        """Ids of runs that left checkpoints beside the file but have no row in it."""
        known = {run.id for run in self.runs()}
        left = {p.name for p in Path(f"{self.path}.checkpoints").glob("*") if self.is_id(p.name)}
        return sorted(left - known)

    def file_bytes(self) -> int:
        """Bytes of the file and its log on the disk."""
        return file_bytes(self._writer.path)

    def used_bytes(self) -> int:
        """Bytes of all runs: the file and all that is beside it under its name.

        These are SQLite's log, checkpoints, the runs' logs, and copies of older versions.
        """
        own, more = self.path.name, (f"{self.path.name}.", f"{self.path.name}-")
        beside = self.path.parent.iterdir()
        return checkpoint_files.used_bytes(
            p for p in beside if p.name == own or p.name.startswith(more)
        )

    def owns(self, path: Path) -> bool:
        """Whether a path is the file, its log or its lock, under any name."""
        own = (Path(f"{self.path}{end}") for end in ("", "-wal", "-shm", ".lock", ".reserve"))
        return path.exists() and any(path.samefile(p) for p in own if p.exists())


_INSERT_ALERT = (
    "INSERT INTO alerts (run_id, step, code, severity, message, group_id, evidence, advice, "
    "dismissed_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _free_id(db: sqlite3.Connection, now: float) -> str:
    while True:
        run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(2)}"
        if not db.execute("SELECT 1 FROM runs WHERE id = ?", (run_id,)).fetchone():
            return run_id


def _times(status: RunStatus, now: float) -> tuple[float | None, float | None]:
    """started_at (None: unchanged) and ended_at of a status."""
    started = status.is_live and status is not RunStatus.QUEUED
    return now if started else None, None if status.is_live else now


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return db.execute(f"PRAGMA {name}").fetchone()[0]
