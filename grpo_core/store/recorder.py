"""Events -> rows. One event is one thought is one transaction; a write that fails raises, because the record is the product."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import ExitStack

from grpo_core.errors import NotFound
from grpo_core.store import search
from grpo_core.store.plain import number, text, to_json
from grpo_core.store.schema import SUMMARY
from grpo_core.store.store import Store
from grpo_core.types import (
    STEP_METRICS,
    Checkpointed,
    Edited,
    Evaluated,
    Event,
    Group,
    GroupsScored,
    ModelLoaded,
    Noticed,
    Paused,
    Phase,
    PhaseStarted,
    Resumed,
    RunStatus,
    StepCompleted,
    StepTokens,
)

PHASE_SECONDS = (
    0.2  # phases can change far more often than anybody looks; each write costs a sync to disk
)


class Recorder:
    """Writes what a trainer says about one run. Holds the file for the life of the `with` block.

    What is said again (a resumed run repeats the steps after its checkpoint) replaces what was said before.
    """

    def __init__(self, store: Store, run_id: str):
        self.store = store
        self.run_id = run_id
        self._phase: PhaseStarted | None = None
        self._written_phase: PhaseStarted | None = None
        self._written_at = float("-inf")
        self._holding = ExitStack()

    def __enter__(self) -> Recorder:
        self._holding.enter_context(self.store.writing())
        return self

    def __exit__(self, *exception: object) -> None:
        self._holding.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            self._phase = event
            at_once = event.phase in (
                Phase.LOADING,
                Phase.EVALUATING,
            )  # they last: the next write may be far away
            if not at_once and time.monotonic() - self._written_at < PHASE_SECONDS:
                return
        with self.store.writing() as writer, writer.transaction() as db:
            self._touch(db, changed=True)
            match event:
                case ModelLoaded(env):
                    db.execute("UPDATE runs SET env = ? WHERE id = ?", (to_json(env), self.run_id))
                    # Only forward: a run that was paused or stopped while it loaded stays so.
                    db.execute(
                        "UPDATE runs SET status = ?, started_at = COALESCE(started_at, heartbeat_at) WHERE id = ? AND status IN (?, ?)",
                        (RunStatus.RUNNING, self.run_id, RunStatus.QUEUED, RunStatus.LOADING),
                    )
                case GroupsScored(step, groups):
                    if db.execute(
                        "DELETE FROM groups WHERE run_id = ? AND step = ?", (self.run_id, step)
                    ).rowcount:
                        search.forget(db)
                    for position, group in enumerate(groups):
                        self._insert_group(db, step, position, group)
                case StepCompleted(step, metrics, extra, tokens):
                    values = [number(getattr(metrics, name)) for name in STEP_METRICS]
                    db.execute(_INSERT_STEP, (self.run_id, step, *values))
                    self._insert_metrics(db, step, extra)
                    if tokens:
                        self._insert_tokens(db, step, tokens)
                case Evaluated(step, metrics):
                    self._insert_metrics(db, step, metrics)
                case Edited(step, values):
                    self._insert_metrics(db, step, values)
                case Checkpointed(step, path, num_bytes, sha256, dropped):
                    db.execute(
                        "INSERT OR REPLACE INTO checkpoints (run_id, step, path, bytes, sha256) VALUES (?, ?, ?, ?, ?)",
                        (
                            self.run_id,
                            step,
                            text(os.path.relpath(path, self.store.path.parent)),
                            num_bytes,
                            sha256,
                        ),
                    )
                    db.executemany(
                        "DELETE FROM checkpoints WHERE run_id = ? AND step = ?",
                        [(self.run_id, s) for s in dropped],
                    )
                case Paused(reason):
                    db.execute(
                        "UPDATE runs SET status = ?, error = ?, waiting_since = COALESCE(waiting_since, ?) WHERE id = ?",
                        (RunStatus.PAUSED, text(reason), time.time(), self.run_id),
                    )
                case Resumed():
                    db.execute(
                        "UPDATE runs SET status = CASE WHEN env IS NULL THEN ?1 ELSE ?2 END, error = NULL, waiting_since = NULL, "
                        "waited_seconds = waited_seconds + MAX(0, ?3 - COALESCE(waiting_since, ?3)) WHERE id = ?4",
                        (RunStatus.LOADING, RunStatus.RUNNING, time.time(), self.run_id),
                    )
                case Noticed(step, code, severity, message):
                    db.execute(
                        "DELETE FROM alerts WHERE run_id = ? AND code = ? AND dismissed_at IS NULL",
                        (self.run_id, text(code)),
                    )
                    db.execute(
                        "INSERT INTO alerts (run_id, step, code, severity, message) SELECT ?1, ?2, ?3, ?4, ?5 "
                        "WHERE NOT EXISTS (SELECT 1 FROM alerts WHERE run_id = ?1 AND code = ?3)",
                        (self.run_id, step, text(code), text(severity), text(message)),
                    )
            if isinstance(event, StepCompleted | Evaluated):
                db.execute(SUMMARY, (self.run_id,))

    def heartbeat(self) -> None:
        """Sign of life, from any thread. Counts as a change only if it brings a phase that was not written yet."""
        with self.store.writing() as writer, writer.transaction() as db:
            self._touch(db, changed=self._phase is not self._written_phase)

    def _touch(self, db: sqlite3.Connection, changed: bool) -> None:
        phase = self._phase
        where = (phase.phase, phase.step, phase.num_steps) if phase else (None, None, None)
        touched = db.execute(
            "UPDATE runs SET revision = revision + ?, heartbeat_at = ?, phase = COALESCE(?, phase), step = COALESCE(?, step), "
            "num_steps = COALESCE(?, num_steps) WHERE id = ?",
            (changed, time.time(), *where, self.run_id),
        )
        if not touched.rowcount:
            raise NotFound(
                f"run {self.run_id!r} is not in the store any more, so nothing can be recorded. Start a new run."
            )
        self._written_phase = phase
        self._written_at = time.monotonic()

    def _insert_group(self, db: sqlite3.Connection, step: int, position: int, group: Group) -> None:
        prompt = group.prompt
        group_id = db.execute(
            "INSERT INTO groups (run_id, step, position, prompt_id, prompt, answer, reward_mean, reward_std, verdict) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.run_id,
                step,
                position,
                text(prompt.id),
                text(prompt.text),
                text(prompt.answer),
                number(group.reward_mean),
                number(group.reward_std),
                text(group.verdict),
            ),
        ).lastrowid
        db.executemany(
            "INSERT INTO rollouts (group_id, position, text, finish_reason, num_tokens, reward, advantage, scores, edited) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    group_id,
                    i,
                    text(r.completion.text),
                    text(r.completion.finish_reason),
                    r.completion.num_tokens,
                    number(r.reward),
                    number(r.advantage),
                    to_json(r.scores),
                    r.edited,
                )
                for i, r in enumerate(group.rollouts)
            ],
        )

    def _insert_tokens(self, db: sqlite3.Connection, step: int, tokens: StepTokens) -> None:
        ids = [
            row[0]
            for row in db.execute(
                "SELECT rollouts.id FROM groups JOIN rollouts ON group_id = groups.id WHERE run_id = ? AND step = ? ORDER BY groups.position, rollouts.position",
                (self.run_id, step),
            ).fetchall()
        ]
        db.executemany(
            "INSERT OR REPLACE INTO token_records (rollout_id, token_ids, sampling_logprobs, logprobs, ref_logprobs, entropy) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    id,
                    *(
                        None if values is None else values.tobytes()
                        for values in (
                            r.token_ids,
                            r.sampling_logprobs,
                            r.logprobs,
                            r.ref_logprobs,
                            r.entropy,
                        )
                    ),
                )
                for id, r in zip(ids, tokens.records, strict=True)
            ],
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
            [(self.run_id, step, text(name), number(value)) for name, value in metrics.items()],
        )


_INSERT_STEP = (
    f"INSERT OR REPLACE INTO steps (run_id, step, {', '.join(STEP_METRICS)}) "
    f"VALUES (?, ?{', ?' * len(STEP_METRICS)})"
)
