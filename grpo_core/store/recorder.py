"""Events -> rows. Each event is written in one transaction; a write that fails raises."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from grpo_core.errors import NotFound
from grpo_core.store import search
from grpo_core.store.plain import finite_or_none, text, to_json
from grpo_core.store.schema import SUMMARY
from grpo_core.store.store import Store
from grpo_core.types import (
    LOST,
    RESTART,
    STEP_METRICS,
    Checkpointed,
    Evaluated,
    Event,
    Group,
    GroupKind,
    GroupsScored,
    Intervened,
    Intervention,
    ModelLoaded,
    Noticed,
    Paused,
    Phase,
    PhaseStarted,
    Restarted,
    Resumed,
    Rollout,
    RunStatus,
    StepCompleted,
    StepTokens,
    TokenRecord,
)

# Phases can change many times a second, and each write costs a sync to disk.
PHASE_SECONDS = 0.2


class Recorder:
    """Writes the events of one run. Holds the file for the life of the `with` block.

    An event that comes again replaces the earlier one: a resumed run repeats the steps after its
    checkpoint.
    """

    INSERT_STEP = (
        f"INSERT OR REPLACE INTO steps (run_id, step, {', '.join(STEP_METRICS)}) "
        f"VALUES (?, ?{', ?' * len(STEP_METRICS)})"
    )

    def __init__(self, store: Store, run_id: str):
        self.store = store
        self.run_id = run_id
        self._phase: PhaseStarted | None = None
        self._written_phase: PhaseStarted | None = None
        self._written_at = float("-inf")
        self._holding = ExitStack()
        self._first_group = 0  # the place in its step of the first group that was written last

    def __enter__(self) -> Recorder:
        self._holding.enter_context(self.store.writing())
        return self

    def __exit__(self, *exception: object) -> None:
        self._holding.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            self._phase = event
            # These phases last: the next write may be far away.
            lasts = event.phase in (Phase.LOADING, Phase.EVALUATING)
            if not lasts and time.monotonic() - self._written_at < PHASE_SECONDS:
                return
        if isinstance(event, Restarted):
            self.store.rewind(self.run_id, event.step)
            self.store.add_intervention(self.run_id, RESTART)
        with self.store.writing() as writer, writer.transaction() as db:
            self._touch(db, changed=True)
            self._write(db, event)
            if isinstance(event, StepCompleted | Evaluated):
                db.execute(SUMMARY, (self.run_id,))

    def _write(self, db: sqlite3.Connection, event: Event) -> None:
        match event:
            case ModelLoaded(env, resolved):
                self._model_loaded(db, env, resolved)
            case GroupsScored(step, groups):
                self._insert_groups(db, step, groups)
            case StepCompleted(step, metrics, extra, tokens):
                values = [finite_or_none(getattr(metrics, name)) for name in STEP_METRICS]
                db.execute(self.INSERT_STEP, (self.run_id, step, *values))
                self._insert_metrics(db, step, extra)
                if tokens:
                    self._insert_tokens(db, step, tokens)
            case Evaluated(step, metrics, groups):
                self._insert_metrics(db, step, metrics)
                self._insert_groups(db, step, groups, GroupKind.EVALUATION)
            case Intervened(interventions):
                insert_interventions(db, self.run_id, interventions)
            case Checkpointed():
                self._checkpointed(db, event)
            case Paused(reason):
                db.execute(
                    "UPDATE runs SET status = ?, error = ?, "
                    "waiting_since = COALESCE(waiting_since, ?) WHERE id = ?",
                    (RunStatus.PAUSED, text(reason), time.time(), self.run_id),
                )
            case Resumed():
                db.execute(
                    "UPDATE runs SET status = CASE WHEN env IS NULL THEN ?1 ELSE ?2 END, "
                    "error = NULL, waiting_since = NULL, waited_seconds = waited_seconds + "
                    "MAX(0, ?3 - COALESCE(waiting_since, ?3)) WHERE id = ?4",
                    (RunStatus.LOADING, RunStatus.RUNNING, time.time(), self.run_id),
                )
            case Noticed():
                self._noticed(db, event)
            case Restarted(step, reason):
                place = f"after step {step}" if step > 0 else "from the beginning"
                told = f"{reason} Ray started the workers again, and the run went on {place}."
                self._noticed(db, Noticed(max(step, 0), LOST, "warning", told))

    def _model_loaded(
        self, db: sqlite3.Connection, env: Mapping[str, Any], resolved: Mapping[str, float]
    ) -> None:
        db.execute("UPDATE runs SET env = ? WHERE id = ?", (to_json(env), self.run_id))
        for name, value in resolved.items():
            db.execute(
                # As JSON text: SQLite prints a bare number with 15 digits, which loses bits.
                "UPDATE runs SET config = json_set(config, ?, json(?)) WHERE id = ?",
                (f"$.{name}", json.dumps(value), self.run_id),
            )
        # Only forward: a run that was paused or stopped while it loaded stays so.
        db.execute(
            "UPDATE runs SET status = ?, started_at = COALESCE(started_at, heartbeat_at) "
            "WHERE id = ? AND status IN (?, ?)",
            (RunStatus.RUNNING, self.run_id, RunStatus.QUEUED, RunStatus.LOADING),
        )

    def _checkpointed(self, db: sqlite3.Connection, event: Checkpointed) -> None:
        path = text(os.path.relpath(event.path, self.store.path.parent))
        db.execute(
            "INSERT OR REPLACE INTO checkpoints (run_id, step, path, bytes, sha256, seconds) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                self.run_id,
                event.step,
                path,
                event.num_bytes,
                event.sha256,
                finite_or_none(event.seconds),
            ),
        )
        db.executemany(
            "DELETE FROM checkpoints WHERE run_id = ? AND step = ?",
            [(self.run_id, step) for step in event.dropped],
        )

    def _noticed(self, db: sqlite3.Connection, event: Noticed) -> None:
        """Keep the last notice of each code, and none of a code that a person dismissed.

        An empty message takes the last one back.
        """
        db.execute(
            "DELETE FROM alerts WHERE run_id = ? AND code = ? AND dismissed_at IS NULL",
            (self.run_id, text(event.code)),
        )
        db.execute(
            "INSERT INTO alerts (run_id, step, code, severity, message) "
            "SELECT ?1, ?2, ?3, ?4, ?5 "
            "WHERE ?5 != '' AND NOT EXISTS (SELECT 1 FROM alerts WHERE run_id = ?1 AND code = ?3)",
            (
                self.run_id,
                event.step,
                text(event.code),
                text(event.severity),
                text(event.message),
            ),
        )

    def heartbeat(self) -> None:
        """Sign of life, from any thread. Pages notice it only if it writes a new phase."""
        with self.store.writing() as writer, writer.transaction() as db:
            self._touch(db, changed=self._phase is not self._written_phase)

    def _touch(self, db: sqlite3.Connection, changed: bool) -> None:
        phase = self._phase
        where = (phase.phase, phase.step, phase.num_steps) if phase else (None, None, None)
        touched = db.execute(
            "UPDATE runs SET revision = revision + ?, heartbeat_at = ?, "
            "phase = COALESCE(?, phase), step = COALESCE(?, step), "
            "num_steps = COALESCE(?, num_steps) WHERE id = ?",
            (changed, time.time(), *where, self.run_id),
        )
        if not touched.rowcount:
            raise NotFound(
                f"run {self.run_id!r} is not in the store any more, so nothing can be recorded. "
                "Start a new run."
            )
        self._written_phase = phase
        self._written_at = time.monotonic()

    def _insert_groups(
        self,
        db: sqlite3.Connection,
        step: int,
        groups: Sequence[Group],
        kind: GroupKind = GroupKind.TRAINING,
    ) -> None:
        first = self._make_room(db, step, kind, len(groups))
        if kind == GroupKind.TRAINING:
            self._first_group = first
        for position, group in enumerate(groups, first):
            prompt = group.prompt
            group_id = db.execute(
                "INSERT INTO groups (run_id, step, position, prompt_id, prompt, answer, "
                "reward_mean, reward_std, verdict, kind, before) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    self.run_id,
                    step,
                    position,
                    text(prompt.id),
                    text(prompt.conversation),
                    text(prompt.answer),
                    finite_or_none(group.reward_mean),
                    finite_or_none(group.reward_std),
                    text(group.verdict),
                    kind,
                    to_json(prompt.meta.get("before", ())),
                ),
            ).lastrowid
            db.executemany(
                "INSERT INTO rollouts (group_id, position, text, finish_reason, num_tokens, "
                "reward, advantage, scores, edited) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(group_id, i, *_rollout_values(r)) for i, r in enumerate(group.rollouts)],
            )
            if any(r.completion.turns for r in group.rollouts):
                _insert_turns(db, group_id, group)

    def _make_room(
        self, db: sqlite3.Connection, step: int, kind: GroupKind, num_groups: int
    ) -> int:
        """Delete the step's earlier groups. Returns the place of the first new one."""
        deleted = db.execute(
            "DELETE FROM groups WHERE run_id = ? AND kind = ? AND step = ?",
            (self.run_id, kind, step),
        )
        if deleted.rowcount:
            search.forget(db)
        return 0

    def _insert_tokens(self, db: sqlite3.Connection, step: int, tokens: StepTokens) -> None:
        ids = {
            (group - self._first_group, position): rollout_id
            for group, position, rollout_id in db.execute(
                "SELECT g.position, r.position, r.id FROM groups g JOIN rollouts r "
                "ON r.group_id = g.id WHERE g.run_id = ? AND g.kind = 'training' AND g.step = ?",
                (self.run_id, step),
            ).fetchall()
        }
        columns = [f.name for f in fields(TokenRecord)]
        rows = []
        for position, record in tokens.records.items():
            arrays = [getattr(record, name) for name in columns]
            rows.append((ids[position], *(None if a is None else a.tobytes() for a in arrays)))
        db.executemany(
            f"INSERT OR REPLACE INTO token_records (rollout_id, {', '.join(columns)}) "
            f"VALUES (?{', ?' * len(columns)})",
            rows,
        )
        db.executemany(
            "INSERT OR REPLACE INTO token_pieces (run_id, token_id, piece) VALUES (?, ?, ?)",
            [(self.run_id, *piece) for piece in tokens.pieces.items()],
        )

    def _insert_metrics(
        self, db: sqlite3.Connection, step: int, metrics: Mapping[str, float | None]
    ) -> None:
        db.executemany(
            "INSERT OR REPLACE INTO metrics (run_id, step, name, value) VALUES (?, ?, ?, ?)",
            [
                (self.run_id, step, text(name), finite_or_none(value))
                for name, value in metrics.items()
            ],
        )


def _rollout_values(rollout: Rollout) -> tuple[Any, ...]:
    return (
        text(rollout.completion.text),
        None if (end := rollout.completion.finish_reason) is None else text(end),
        rollout.completion.num_tokens,
        finite_or_none(rollout.reward),
        finite_or_none(rollout.advantage),
        to_json(rollout.scores),
        rollout.edited,
    )


def _insert_turns(db: sqlite3.Connection, group_id: int | None, group: Group) -> None:
    """Write the turns of a group whose rollouts are written."""
    ids = db.execute(
        "SELECT id FROM rollouts WHERE group_id = ? ORDER BY position", (group_id,)
    ).fetchall()
    db.executemany(
        "INSERT INTO turns (rollout_id, position, role, text, first_token, num_tokens, tool, "
        "arguments, error, seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                rollout_id,
                position,
                turn.role,
                text(turn.text),
                turn.first_token,
                turn.num_tokens,
                text(turn.tool),
                text(turn.arguments),
                text(turn.error),
                finite_or_none(turn.seconds),
            )
            for (rollout_id,), rollout in zip(ids, group.rollouts, strict=True)
            for position, turn in enumerate(rollout.completion.turns)
        ],
    )


def insert_interventions(
    db: sqlite3.Connection, run_id: str, interventions: Iterable[Intervention]
) -> None:
    """Write settings and rewards that people changed.

    A resumed run writes them again: the row is replaced and keeps the time of the first writing.
    """
    for i in interventions:
        position = (run_id, i.step, i.kind, i.field, i.group, i.completion)
        earlier = db.execute(
            "DELETE FROM interventions WHERE run_id = ? AND step = ? AND kind = ? "
            "AND field IS ? AND group_position IS ? AND rollout_position IS ? "
            "RETURNING created_at",
            position,
        ).fetchall()
        created_at = earlier[0][0] if earlier else time.time()
        db.execute(
            "INSERT INTO interventions (run_id, step, kind, field, group_position, "
            "rollout_position, value, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*position, finite_or_none(i.value), created_at),
        )
