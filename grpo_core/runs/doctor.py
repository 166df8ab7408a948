"""Checks of an installation and a store. Nothing changes unless the caller runs a finding's fix."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from grpo_core.checkpoint_files import BadCheckpoint, folder_bytes, remove, saved_steps, verify
from grpo_core.errors import StoreError
from grpo_core.store import Store
from grpo_core.types import RunStatus

PACKAGES = (
    "torch",
    "transformers",
    "gradio",
    "pydantic",
    "safetensors",
    "plotly",
    "pandas",
    "sqlite-utils",
)
DELETES = "With --fix it is deleted."
MIN_FREE_BYTES = 2**30  # with less free space, one run can fill the disk


@dataclass(frozen=True, slots=True)
class Finding:
    """A fact, or a fault if `wrong`. `fix` repairs it; None: only a person can, as `hint` says."""

    what: str
    wrong: bool = False
    hint: str = ""
    fix: Callable[[], object] | None = None


def examine(db: str) -> Iterator[Finding]:
    """Findings on versions and device, then on the store, the disk and the checkpoints."""
    python, system = platform.python_version(), platform.platform()
    yield Finding(f"Python {python}, SQLite {sqlite3.sqlite_version}, {system}")
    for name in PACKAGES:
        try:
            yield Finding(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"{name} is not installed", True, "pip install -r requirements.txt")
    from grpo_core.models.device import describe_machine  # imports torch: seconds

    yield Finding(f"device: {describe_machine()}")
    if not Path(db).exists():
        yield Finding(f"there is no store at {db!r} yet; the first run creates it")
        return
    try:
        store = Store(db)
        yield from examine_store(store)
    except StoreError as problem:
        yield Finding(str(problem), True)


def examine_store(store: Store) -> Iterator[Finding]:
    """Findings on the store, the disk, the checkpoints, and files that nothing uses."""
    runs = store.runs()
    size = _mib(store.file_bytes())
    yield Finding(f"store {str(store.path)!r}: {len(runs)} runs, {size}")
    damage = store.integrity()
    for line in damage:
        yield Finding(
            f"the store is damaged: {line}",
            True,
            "Save the readable rows with `python -m grpo_core export`, then restore a backup.",
        )
    if damage:  # rows may be missing, so no checkpoint may be taken for one without a run
        return
    free = shutil.disk_usage(store.path.parent).free
    yield Finding(
        f"{free / 2**30:.1f} GiB are free beside the store",
        free < MIN_FREE_BYTES,
        "Free some space. A run pauses when the disk is full.",
    )
    alive = [r.id for r in runs if r.status.is_live and r.status is not RunStatus.QUEUED]
    if alive and store.is_free():
        yield Finding(
            f"{', '.join(alive)}: no process works on it any more",
            True,
            "With --fix it is marked as interrupted and can be resumed.",
            store.recover,
        )
    for run in runs:
        yield from examine_checkpoints(store, run.id)
    yield from examine_leftovers(store)


def examine_checkpoints(store: Store, run_id: str) -> Iterator[Finding]:
    """Checkpoint rows whose folder is damaged or missing, and folders without a row."""
    rows = store.checkpoints(run_id)
    for row in rows:
        try:
            verify(row.path, row.sha256)
        except BadCheckpoint as problem:
            yield Finding(
                f"run {run_id}, step {row.step}: {problem}",
                True,
                "With --fix it is removed; Resume then uses the one before it.",
                lambda row=row: (store.forget_checkpoint(run_id, row.step), remove(row.path)),
            )
    if rows:
        size = _mib(sum(row.bytes for row in rows))
        yield Finding(f"run {run_id}: {len(rows)} checkpoints, {size}")
    known = {row.step for row in rows}
    for step, path in saved_steps(store.checkpoint_folder(run_id)).items():
        if step not in known:
            yield Finding(
                f"{str(path)!r} belongs to no recorded step ({_mib(folder_bytes(path))})",
                True,
                DELETES,
                lambda path=path: remove(path),
            )


def examine_leftovers(store: Store) -> Iterator[Finding]:
    """Files that killed processes and deleted runs left beside the store.

    Files with names that this program never gives are ignored.
    """
    folder, unlisted = Path(f"{store.path}.checkpoints"), store.unlisted()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and path.name in unlisted:
            yield Finding(
                f"{str(path)!r} belongs to no run ({_mib(folder_bytes(path))})",
                True,
                DELETES,
                lambda path=path: shutil.rmtree(path),
            )
        for part in path.glob(".step-*"):
            if store.is_free():
                yield Finding(
                    f"{str(part)!r} is an unfinished checkpoint ({_mib(folder_bytes(part))})",
                    True,
                    DELETES,
                    lambda part=part: shutil.rmtree(part),
                )
    reserve = store.path.with_name(f"{store.path.name}.reserve")
    if reserve.exists() and store.is_free():
        yield Finding(
            f"{str(reserve)!r} was left by a killed process",
            True,
            DELETES,
            lambda: reserve.unlink(missing_ok=True),
        )


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
