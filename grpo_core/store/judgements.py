"""Cached answers of LLM judges, so that the same question is paid for once. A file of its own."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any


class Judgements:
    """key -> (score, reason). Thread-safe: one connection, used under a lock.

    A file that is damaged, full or locked costs requests, not verdicts. After such an error this
    process neither finds nor keeps anything more.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._conn: sqlite3.Connection | None = None
        with contextlib.suppress(sqlite3.Error, OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._conn = _open(path)

    def get(self, key: str) -> tuple[float, str] | None:
        select = "SELECT score, reason FROM judgements WHERE key = ? AND score BETWEEN 0 AND 1"
        return next(iter(self._execute(select, (key,))), None)

    def put(self, key: str, score: float, reason: str, tokens: int, seconds: float) -> None:
        row = (key, score, reason.encode("utf-8", "replace").decode(), tokens, seconds, time.time())
        self._execute("INSERT OR REPLACE INTO judgements VALUES (?, ?, ?, ?, ?, ?)", row)

    def _execute(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            try:
                return self._conn.execute(sql, values).fetchall() if self._conn else []
            except sqlite3.Error:
                self._conn = None
                return []


def _open(path: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(path, timeout=15, check_same_thread=False, isolation_level=None)
    with contextlib.ExitStack() as on_error:
        on_error.callback(conn.close)
        # No WAL: the server and its runs write here, each in a process of its own.
        conn.execute("PRAGMA journal_mode = TRUNCATE")
        conn.execute(
            "CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, score REAL NOT NULL, "
            "reason TEXT NOT NULL, tokens INTEGER NOT NULL, "
            "seconds REAL NOT NULL, created_at REAL NOT NULL) STRICT"
        )
        on_error.pop_all()
    return conn
