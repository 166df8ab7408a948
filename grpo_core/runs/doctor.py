"""What is wrong with an installation or a store, and what to do about it. Looks only, unless it is asked to mend."""

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
LITTLE_BYTES = 2**30  # below this a run may well fill the disk


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know (`wrong` False) or to mend. `fix` mends it; None: only a person can, as `hint` says."""

    what: str
    wrong: bool = False
    hint: str = ""
    fix: Callable[[], object] | None = None


def examine(db: str) -> Iterator[Finding]:
    """Everything worth saying, one by one: versions, device, then the store, its checkpoints and the disk."""
    yield Finding(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.platform()}"
    )
    for name in PACKAGES:
        try:
            yield Finding(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"{name} is not installed", True, "pip install -r requirements.txt")
    from grpo_core.models import describe_device, pick_device  # takes seconds

    yield Finding(f"device: {describe_device(pick_device())}")
    if not Path(db).exists():
        yield Finding(f"there is no store at {db!r} yet; the first run makes it")
        return
    try:
        store = Store(db)
        yield from examine_store(store)
    except StoreError as problem:
        yield Finding(str(problem), True)


def examine_store(store: Store) -> Iterator[Finding]:
    runs = store.runs()
    yield Finding(
        f"store {str(store.path)!r}: {len(runs)} runs, {store.file_bytes() / 2**20:.1f} MiB"
    )
    for line in store.integrity():
        yield Finding(
            f"the store is damaged: {line}",
            True,
            "Copy what can be read with `python -m grpo_core export`, then restore a copy of the file.",
        )
    free = shutil.disk_usage(store.path.parent).free
    yield Finding(
        f"{free / 2**30:.1f} GiB are free beside the store",
        free < LITTLE_BYTES,
        "Free some space: a run pauses when the disk is full.",
    )
    alive = [r.id for r in runs if r.status.is_live and r.status is not RunStatus.QUEUED]
    if alive and store.is_free():
        yield Finding(
            f"{', '.join(alive)}: no process works on it any more",
            True,
            "It is marked as interrupted, and can then be resumed.",
            store.recover,
        )
    for run in runs:
        yield from examine_checkpoints(store, run.id)
    yield from examine_leftovers(store, {run.id for run in runs})


def examine_checkpoints(store: Store, run_id: str) -> Iterator[Finding]:
    """Rows without a whole folder, and folders without a row."""
    rows = store.checkpoints(run_id)
    for row in rows:
        try:
            verify(row.path, row.sha256)
        except BadCheckpoint as problem:
            yield Finding(
                f"run {run_id}, step {row.step}: {problem}",
                True,
                "It is taken off the list; the one before it is used.",
                lambda row=row: (store.forget_checkpoint(run_id, row.step), remove(row.path)),
            )
    if rows:
        yield Finding(
            f"run {run_id}: {len(rows)} checkpoints, {sum(r.bytes for r in rows) / 2**20:.1f} MiB"
        )
    known = {row.step for row in rows}
    for step, path in saved_steps(store.checkpoint_folder(run_id)).items():
        if step not in known:
            yield Finding(
                f"{str(path)!r} belongs to no step on record ({folder_bytes(path) / 2**20:.1f} MiB)",
                True,
                "It is deleted.",
                lambda path=path: remove(path),
            )


def examine_leftovers(store: Store, known: set[str]) -> Iterator[Finding]:
    """What killed processes and deleted runs left beside the store. Only names that this program gives are looked at."""
    folder = Path(f"{store.path}.checkpoints")
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and path.name not in known and store.is_id(path.name):
            yield Finding(
                f"{str(path)!r} belongs to no run ({folder_bytes(path) / 2**20:.1f} MiB)",
                True,
                "It is deleted.",
                lambda path=path: shutil.rmtree(path),
            )
        for part in path.glob(".step-*"):
            if store.is_free():
                yield Finding(
                    f"{str(part)!r} was never finished ({folder_bytes(part) / 2**20:.1f} MiB)",
                    True,
                    "It is deleted.",
                    lambda part=part: shutil.rmtree(part),
                )
    reserve = store.path.with_name(f"{store.path.name}.reserve")
    if reserve.exists() and store.is_free():
        yield Finding(
            f"{str(reserve)!r} was left by a process that was killed",
            True,
            "It is deleted.",
            lambda: reserve.unlink(missing_ok=True),
        )
