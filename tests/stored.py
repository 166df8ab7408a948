"""Groups and runs for tests of the store, recorded as a trainer records them."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from grpo_core.config import RunConfig
from grpo_core.store import Recorder, Store
from grpo_core.types import (
    Completion,
    Group,
    Prompt,
    Rollout,
    RunStatus,
)

FINISHED = RunStatus.FINISHED


def rollout(text: str = "4", reward: float | None = 1.0, **scores: float | None) -> Rollout:
    return Rollout(Completion(text, "stop", 3), scores, reward, 0.5)


def group(
    *rollouts: Rollout, prompt: str = "2+2=", mean: float | None = 0.5, verdict: str = "informative"
) -> Group:
    return Group(
        Prompt("sums-7", prompt, "4", "sums"),
        rollouts or (rollout(), rollout("5", 0.0)),
        mean,
        0.7,
        verdict,
    )


def recorded(store: Store, *events: object, status: RunStatus = FINISHED) -> str:
    run_id = store.create_run(RunConfig(), "a run")
    with Recorder(store, run_id) as recorder:
        for event in events:
            recorder(event)
    store.set_status(run_id, status)
    return run_id


def raw(store: Store, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(store.path)) as conn:
        return conn.execute(sql).fetchall()
