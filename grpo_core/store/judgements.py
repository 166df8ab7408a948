"""Cached answers of LLM judges, so that the same question is paid for once. A file of its own."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path


class Judgements:
    """key -> (score, reason). Thread-safe: one connection, used under a lock."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._conn = sqlite3.connect(
            path, timeout=15, check_same_thread=False, isolation_level=None
        )
        # No WAL: the server and its runs write here, each in a process of its own.
        self._conn.execute("PRAGMA journal_mode = TRUNCATE")
        self._conn.execute(
            "CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, score REAL NOT NULL, "
            "reason TEXT NOT NULL, tokens INTEGER NOT NULL, "
            "seconds REAL NOT NULL, created_at REAL NOT NULL) STRICT"
        )

    def get(self, key: str) -> tuple[float, str] | None:
        with self._lock:
            return self._conn.execute(
                "SELECT score, reason FROM judgements WHERE key = ?", (key,)
            ).fetchone()

    def put(self, key: str, score: float, reason: str, tokens: int, seconds: float) -> None:
        row = (key, score, reason.encode("utf-8", "replace").decode(), tokens, seconds, time.time())
        with self._lock:
            self._conn.execute("INSERT OR REPLACE INTO judgements VALUES (?, ?, ?, ?, ?, ?)", row)
