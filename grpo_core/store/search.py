r"""Plain-text search: finds what was typed, literally, anywhere in a prompt or completion; ASCII letters in either case.

Reading 50,000 completions of 1.3 KB takes 0.1 s, so at first they are simply read (LIKE). Beyond that an FTS5 index of
their trigrams picks candidates, and LIKE has the last word: the answers are the same with and without it. (The usual word
index would find nothing for "<answer>" or "sum of 12".) It is built by those who search, never by those who train.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from grpo_core.errors import StoreError
from grpo_core.store.connection import Readers, Writer
from grpo_core.store.plain import text

SCANNED = 50_000  # completions read at every search before an index is worth its time and space (40 % of the text)
BATCH = 2_000  # completions indexed in one transaction: a run that goes on meanwhile waits for 0.1 s
BUDGET_SECONDS = 1.0  # what one search spends on the index; the next one goes on from there
MAX_CHARS = 200  # of a query: LIKE compares in length of pattern times length of text


def condition(readers: Readers, writer: Writer, query: str) -> tuple[str, list[Any]]:
    """SQL, and its values, that is true for a row `g` of groups whose prompt or completions contain `query`."""
    query = text(query).strip()[:MAX_CHARS]
    pattern = like(query)
    # All distinct trigrams must occur; 32 are selective enough. Quoted, they are text and never syntax.
    trigrams = trigrams_of(query)
    indexed = catch_up(readers, writer) if trigrams else 0
    sql = ("g.prompt LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM rollouts r WHERE r.group_id = g.id AND r.id > ? "
           "AND r.text LIKE ? ESCAPE '\\')")
    values = [pattern, indexed, pattern]
    if indexed:
        sql += (" OR g.id IN (SELECT r.group_id FROM rollouts r WHERE r.text LIKE ? ESCAPE '\\' AND r.id IN "
                "(SELECT rowid FROM completions_fts WHERE completions_fts MATCH ?))")
        values += [pattern, trigrams]
    return f"({sql})", values


def trigrams_of(query: str) -> str:
    """An FTS5 query that every text with `query` in it meets; empty for one too short to have a trigram."""
    return " AND ".join('"' + t.replace('"', '""') + '"' for t in list(dict.fromkeys(query[i:i + 3] for i in range(len(query) - 2)))[:32])


def like(query: str) -> str:
    """A LIKE pattern, ESCAPE '\\', for texts that contain `query`."""
    return "%" + query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def forget(db: sqlite3.Connection) -> None:
    """Empties the index. Needed whenever rollouts are deleted: SQLite gives their ids to new ones, which would count as indexed."""
    db.execute("INSERT INTO completions_fts (completions_fts) VALUES ('delete-all')")


def catch_up(readers: Readers, writer: Writer) -> int:
    """Brings the index nearer to the newest rollout if it is far behind; returns the last rollout id that is in it."""
    last = f"SELECT ({_INDEXED}), (SELECT COALESCE(MAX(id), 0) FROM rollouts)"
    indexed, newest = readers.all(last)[0]
    if newest - indexed <= (BATCH if indexed else SCANNED):
        return indexed
    until = time.monotonic() + BUDGET_SECONDS
    try:
        writer.hold(wait_seconds=0)
        try:
            while indexed < newest and time.monotonic() < until:
                with writer.transaction() as db:
                    db.execute(f"INSERT INTO completions_fts (rowid, text) SELECT id, text FROM rollouts WHERE id > ({_INDEXED}) "
                               "ORDER BY id LIMIT ?", (BATCH,))
                indexed = readers.all(last)[0][0]
        finally:
            writer.release()
    except StoreError:
        pass  # another process writes, or the disk is full: what is not in the index is read, as before
    return indexed


_INDEXED = "SELECT COALESCE(MAX(id), 0) FROM completions_fts_docsize"  # the table in which FTS5 lists what it holds
