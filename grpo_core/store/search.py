r"""Plain-text search: find the typed text, literally, in prompts and completions.

ASCII letters match in either case. Reading 50,000 completions of 1.3 KB takes 0.1 s, so at first
they are simply read (LIKE). Beyond that an FTS5 index of trigrams finds candidates and LIKE
decides: the results are the same with and without it. A word index would not find "<answer>" or
"sum of 12".

A completion with turns is searched in its text, which holds what the policy wrote and read, and in
its tool calls: tool, arguments, answer and error. The index holds both as one text.

Searches build the index, never training: the first search begins, a thread goes on. Until it is
complete, a search covers what is indexed and the newest 50,000, and reports what it left out.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import Any

from grpo_core.errors import StoreError
from grpo_core.store.connection import Readers, Writer
from grpo_core.store.plain import text

# Completions that a search reads before an index is worth its time and space (40 % of the text).
SCANNED = 50_000
BATCH = (
    2_000  # completions indexed in one transaction: a run that goes on meanwhile waits for 0.1 s
)
# A search spends this on the index, which closes a small gap at once; a thread does the rest.
BUDGET_SECONDS = 0.05
PAUSE_SECONDS = 0.05  # between two batches of that thread, for a run that writes
MAX_CHARS = 200  # of a query: LIKE compares in length of pattern times length of text


# A tool call as one text; `t` is its row of `turns`.
CALL = "(char(10) || t.tool || ' ' || t.arguments || char(10) || t.text || char(10) || t.error)"
# Whether rollout `r` contains a pattern, which it takes twice.
CONTAINS = (
    "(r.text LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM turns t WHERE t.rollout_id = r.id AND "
    f"t.role = 'observation' AND {CALL} LIKE ? ESCAPE '\\'))"
)


@dataclass(frozen=True, slots=True)
class Reach:
    """What a search covers: the index, up to rollout id `indexed`, and the texts after
    `read_after`.

    The `unsearched` rollouts lie between them.
    """

    indexed: int
    read_after: int

    @property
    def unsearched(self) -> int:
        return self.read_after - self.indexed


def condition(readers: Readers, writer: Writer, query: str) -> tuple[str, list[Any], int]:
    """A condition on `g`, a row of groups, that its prompt or a completion contains `query`.

    Returns the SQL, its values, and how many completions the search leaves out.
    """
    query = text(query).strip()[:MAX_CHARS]
    pattern = like(query)
    # All distinct trigrams must occur; 32 are selective enough. Quoted, they are text and never
    # syntax.
    trigrams = trigrams_of(query)
    reach = catch_up(readers, writer) if trigrams else Reach(0, 0)
    sql = (
        "g.prompt LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM rollouts r WHERE r.group_id = g.id "
        f"AND r.id > ? AND {CONTAINS})"
    )
    values = [pattern, reach.read_after, pattern, pattern]
    if reach.indexed:
        sql += (
            f" OR g.id IN (SELECT r.group_id FROM rollouts r WHERE {CONTAINS} AND r.id IN "
            "(SELECT rowid FROM completions_fts WHERE completions_fts MATCH ?))"
        )
        values += [pattern, pattern, trigrams]
    return f"({sql})", values, reach.unsearched


# With more matches than this, reading group after group finds a page sooner than the index.
COMMON = 20_000


def is_common(readers: Readers, query: str) -> bool:
    """Whether so many completions contain `query` that reading groups in order is faster."""
    trigrams = trigrams_of(text(query).strip()[:MAX_CHARS])
    found = trigrams and readers.all(
        "SELECT COUNT(*) FROM (SELECT 1 FROM completions_fts WHERE completions_fts MATCH ? LIMIT "
        "?)",
        (trigrams, COMMON + 1),
    )
    return bool(found) and found[0][0] > COMMON


def read(query: str) -> tuple[str, list[Any]]:
    """Like `condition`, but reads prompts and completions without the index."""
    pattern = like(text(query).strip()[:MAX_CHARS])
    return (
        "(g.prompt LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM rollouts r WHERE r.group_id = "
        f"g.id AND {CONTAINS}))",
        [pattern, pattern, pattern],
    )


def trigrams_of(query: str) -> str:
    """An FTS5 query that matches every text with `query` in it; empty if it is too short."""
    return " AND ".join(
        '"' + t.replace('"', '""') + '"'
        for t in list(dict.fromkeys(query[i : i + 3] for i in range(len(query) - 2)))[:32]
    )


def like(query: str) -> str:
    """A LIKE pattern, with ESCAPE '\\', for texts that contain `query`."""
    return "%" + query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def forget(db: sqlite3.Connection) -> None:
    """Empty the index. Needed after rollouts are deleted: SQLite reuses their ids."""
    db.execute("INSERT INTO completions_fts (completions_fts) VALUES ('delete-all')")


def catch_up(readers: Readers, writer: Writer) -> Reach:
    """Extend the index if it is far behind, have a thread go on, and say what can be searched."""
    indexed, newest = _ends(readers)
    if newest - indexed > (BATCH if indexed else SCANNED):
        indexed = _index(readers, writer, time.monotonic() + BUDGET_SECONDS)
        if newest - indexed > SCANNED:
            _go_on(readers, writer)
    return Reach(indexed, max(indexed, newest - SCANNED))


def _index(readers: Readers, writer: Writer, until: float) -> int:
    """Add batches until the time is up or all are in; return the last indexed rollout id."""
    indexed, newest = _ends(readers)
    try:
        writer.hold(wait_seconds=0)
        try:
            while indexed < newest:
                with writer.transaction() as db:
                    db.execute(
                        "INSERT INTO completions_fts (rowid, text) SELECT id, text || COALESCE(("
                        f"SELECT group_concat({CALL}) FROM turns t WHERE t.rollout_id = r.id AND "
                        "t.role = 'observation'), '') FROM rollouts r "
                        f"WHERE id > ({_INDEXED}) ORDER BY id LIMIT ?",
                        (BATCH,),
                    )
                indexed = _ends(readers)[0]
                if time.monotonic() >= until:
                    break
        finally:
            writer.release()
    except StoreError:
        pass  # another process writes, or the disk is full: a later search tries again
    return indexed


def _go_on(readers: Readers, writer: Writer) -> None:
    """Start the thread that builds the rest of the index; each file has one.

    A daemon: each batch is a transaction, so wherever it ends the index is right as far as it goes.
    """
    with _starting:
        if writer.indexer is None or not writer.indexer.is_alive():
            writer.indexer = threading.Thread(
                target=_build, args=(readers, writer), name="index", daemon=True
            )
            writer.indexer.start()


def _build(readers: Readers, writer: Writer) -> None:
    before, (indexed, newest) = -1, _ends(readers)
    while before < indexed < newest:
        before, indexed = indexed, _index(readers, writer, time.monotonic())  # one batch
        newest = _ends(readers)[1]
        time.sleep(PAUSE_SECONDS)


def _ends(readers: Readers) -> tuple[int, int]:
    """The last rollout id in the index, and in the store."""
    return tuple(
        readers.all(f"SELECT ({_INDEXED}), (SELECT COALESCE(MAX(id), 0) FROM rollouts)")[0]
    )


_starting = threading.Lock()
# FTS5 lists the rows it holds in this table.
_INDEXED = "SELECT COALESCE(MAX(id), 0) FROM completions_fts_docsize"
