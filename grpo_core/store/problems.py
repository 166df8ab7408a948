"""What can be wrong with a file of runs, in one line each that says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpo_core.errors import StoreAway, StoreError, StoreFull, StoreLocked

PROBLEMS = {
    sqlite3.SQLITE_NOTADB: (
        "is not a GRPO Studio file. It was left as it is; name another file with --db."
    ),
    sqlite3.SQLITE_CORRUPT: "is damaged. Restore a copy, or name another file with --db.",
    sqlite3.SQLITE_FULL: (
        "cannot grow: the disk is full. "
        "Free some space on it, or name a file on another disk with --db."
    ),
    sqlite3.SQLITE_READONLY: (
        "cannot be written. Change its permissions, or name another file with --db."
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened. "
        "Check that it still exists and its permissions, or name another file with --db."
    ),
    sqlite3.SQLITE_BUSY: (
        "is locked by another program. Close that program, or name another file with --db."
    ),
    sqlite3.SQLITE_IOERR: (
        "cannot be written or read: the disk or its quota may be full, or the disk fails. "
        "Free some space on it, or name a file on another disk with --db."
    ),
}
# Of these kinds a run waits for a person, or until the file can be written again.
KINDS = {
    sqlite3.SQLITE_FULL: StoreFull,
    sqlite3.SQLITE_IOERR: StoreAway,
    sqlite3.SQLITE_READONLY: StoreAway,
    sqlite3.SQLITE_BUSY: StoreLocked,
    sqlite3.SQLITE_CANTOPEN: StoreAway,
}


def explain(path: Path, error: Exception) -> StoreError:
    """One line that says what is wrong with the file and what to do."""
    code = _kind(error)
    problem = PROBLEMS.get(
        code,
        f"cannot be used: {error}. Check the disk and permissions, or name another file with --db.",
    )
    return KINDS.get(code, StoreError)(" ".join(f"--db {str(path)!r} {problem}".split()))


def _kind(error: Exception) -> int:
    """SQLite's code for the kind of error; 0 for errors that SQLite does not number."""
    if str(error).startswith("Could not decode to UTF-8"):
        return sqlite3.SQLITE_CORRUPT  # we write valid UTF-8 only
    # The low byte is the kind of error, the rest a detail of it.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of file, disk and locks become a StoreError; wrong SQL stays a programmer's error."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if _kind(error) in (0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT):
            raise
        raise explain(path, error) from error


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Around the decoding of stored JSON and names: what cannot be decoded is damage."""
    try:
        yield
    except ValueError:
        raise StoreError(f"--db {str(path)!r} {PROBLEMS[sqlite3.SQLITE_CORRUPT]}") from None


def damaged(path: Path, found: str) -> str:
    """Why a file is only read; found: the fault in SQLite's words."""
    found = " ".join(found.split())[:200]
    return (
        f"--db {str(path)!r} is damaged and was not closed properly ({found}). It is only read; "
        f"nothing is written to it. Look with `python -m grpo_core doctor --db {str(path)!r}`, "
        "restore a copy, or name another file with --db."
    )
