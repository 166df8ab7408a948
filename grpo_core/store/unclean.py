"""Whether a file was closed properly by its last writer, and a check of its pages if not."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path

CHECK_SECONDS = 30.0  # of a start after an unclean end; a file of 1 GB takes 0.8 s
CALLBACK_EVERY = 100_000  # virtual instructions between two looks at the clock
log = logging.getLogger("grpo_studio")

Identity = tuple[int, int, int]  # inode, bytes, time of the last change in ns


def identity(path: Path | str) -> Identity | None:
    """Differs as soon as the file is changed or replaced; None for a missing or an empty one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found.st_size else None


def has_live_runs(conn: sqlite3.Connection) -> bool:
    """Whether a run is marked as going on. A writer that ends properly leaves none."""
    there = conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone()
    live = "SELECT 1 FROM runs WHERE status IN ('loading', 'running', 'paused')"
    return there is not None and conn.execute(live).fetchone() is not None


def first_damage(conn: sqlite3.Connection, seconds: float = CHECK_SECONDS) -> str:
    """The first fault of the file's structure in SQLite's words; empty if none was found.

    Reads every page, once. Stops after `seconds`; what it read until then counts.
    """
    until = time.monotonic() + seconds
    conn.set_progress_handler(lambda: time.monotonic() > until, CALLBACK_EVERY)
    try:
        found = str(conn.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_INTERRUPT:
            log.warning("the file was checked for %.0f s only; doctor checks all of it", seconds)
            return ""
        if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
        return str(error)
    finally:
        conn.set_progress_handler(None, 0)
    return "" if found == "ok" else found
