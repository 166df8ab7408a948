"""The reward models trained here: one row for each training, with its progress and its result."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_core.errors import NotFound, StoreBusy
from grpo_core.store.plain import text, to_json
from grpo_core.store.problems import decoding
from grpo_core.store.store import Store
from grpo_core.types import RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelRow:
    """A training of a reward model.

    status: running, finished, stopped (its model is kept), failed or interrupted.
    config: its settings; progress: the steps so far; result: all that was measured, once it ended.
    """

    id: str
    name: str
    folder: Path
    base: str
    status: RunStatus
    created_at: float
    ended_at: float | None
    num_pairs: int
    config: Mapping[str, Any]
    progress: list[Mapping[str, Any]]
    result: Mapping[str, Any] | None
    error: str | None

    @property
    def is_usable(self) -> bool:
        return self.result is not None and self.folder.is_dir()


def folder_of(store: Store) -> Path:
    """Where the models of a file are: beside it, as checkpoints are."""
    return Path(f"{store.path}.reward_models")


def create(store: Store, name: str, num_pairs: int, config: Mapping[str, Any]) -> RewardModelRow:
    """A new training, running. Raises StoreBusy if another process holds the file."""
    now = time.time()
    model_id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime(now)) + secrets.token_hex(2)
    folder = folder_of(store) / model_id
    with store.writing() as writer, writer.transaction() as db:
        db.execute(
            "INSERT INTO reward_models (id, name, folder, base, status, created_at, num_pairs, "
            "config, progress) VALUES (?, ?, ?, ?, ?, ?, ?, ?, '[]')",
            (
                model_id,
                text(name).strip() or model_id,
                text(str(folder)),
                text(str(config["base"])),
                RunStatus.RUNNING,
                now,
                num_pairs,
                to_json(config),
            ),
        )
    return get(store, model_id)


def note(store: Store, model_id: str, progress: list[Mapping[str, Any]]) -> None:
    """Replace the steps of a training that goes on."""
    with store.writing() as writer, writer.transaction() as db:
        db.execute(
            "UPDATE reward_models SET progress = ? WHERE id = ?", (to_json(progress), model_id)
        )


def end(
    store: Store,
    model_id: str,
    status: RunStatus,
    result: Mapping[str, Any] | None = None,
    error: str | None = None,
) -> None:
    """The end of a training. result: with a model; error: why there is none."""
    with store.writing() as writer, writer.transaction() as db:
        db.execute(
            "UPDATE reward_models SET status = ?, ended_at = ?, result = ?, error = ? WHERE id = ?",
            (
                status,
                time.time(),
                None if result is None else to_json(result),
                None if error is None else text(error),
                model_id,
            ),
        )


def recover(store: Store) -> None:
    """Mark trainings whose process died as interrupted, unless another process holds the file."""
    try:
        with store.writing(wait_seconds=0) as writer, writer.transaction() as db:
            db.execute(
                "UPDATE reward_models SET status = ?, ended_at = ? WHERE status = ?",
                (RunStatus.INTERRUPTED, time.time(), RunStatus.RUNNING),
            )
    except StoreBusy:
        return


def remove(store: Store, model_id: str) -> None:
    """Delete a model that is not being trained: its row and its folder. Raises NotFound."""
    row = get(store, model_id)
    if row.status is RunStatus.RUNNING:
        return
    with store.writing() as writer, writer.transaction() as db:
        db.execute("DELETE FROM reward_models WHERE id = ?", (model_id,))
    shutil.rmtree(row.folder, ignore_errors=True)


def get(store: Store, model_id: str) -> RewardModelRow:
    found = [row for row in read(store) if row.id == model_id]
    if not found:
        raise NotFound(f"there is no reward model {model_id!r} in {store.path}.")
    return found[0]


def read(store: Store) -> list[RewardModelRow]:
    """All trainings, newest first. The folders lie beside the file, wherever that is now."""
    rows = store._readers.all("SELECT * FROM reward_models ORDER BY created_at DESC, rowid DESC")
    with decoding(store.path):
        return [
            RewardModelRow(
                **{
                    **row,
                    "folder": folder_of(store) / row["id"],
                    "status": RunStatus(row["status"]),
                    "config": json.loads(row["config"]),
                    "progress": json.loads(row["progress"]),
                    "result": json.loads(row["result"]) if row["result"] else None,
                }
            )
            for row in rows
        ]


def newest_usable(store: Store) -> RewardModelRow | None:
    """The newest model that can score."""
    return next((row for row in read(store) if row.is_usable), None)


def token(store: Store) -> tuple[Any, ...]:
    """Differs whenever a training was added, went on, ended or was deleted."""
    rows = store._readers.all(
        "SELECT COUNT(*), MAX(created_at), MAX(ended_at), SUM(LENGTH(progress)) FROM reward_models"
    )
    return tuple(rows[0])
