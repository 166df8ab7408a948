r"""Plain-text search: finds what was typed, literally, anywhere in a prompt or completion; ASCII
letters in either case.

Reading 50,000 completions of 1.3 KB takes 0.1 s, so at first they are simply read (LIKE). Beyond
that an FTS5 index of
their trigrams picks candidates, and LIKE has the last word: the answers are the same with and
without it. (The usual word
index would find nothing for "<answer>" or "sum of 12".) It is built by those who search, never by
those who train: the first search
begins it and a thread goes on. Until it is whole, a search looks into what is indexed and into the
newest 50,000, and says what it left out.
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

SCANNED = 50_000  # completions read at every search before an index is worth its time and space (40 % of the text)
BATCH = (
    2_000  # completions indexed in one transaction: a run that goes on meanwhile waits for 0.1 s
)
BUDGET_SECONDS = 0.05  # what a search itself spends on the index, so that a small gap is closed at once; a thread does the rest
PAUSE_SECONDS = 0.05  # between two batches of that thread, for a run that writes
MAX_CHARS = 200  # of a query: LIKE compares in length of pattern times length of text


@dataclass(frozen=True, slots=True)
class Reach:
    """What a search looks into.

    The index, which holds rollouts up to id `indexed`, and the texts from `read_after` on. Between
    them lie `unsearched`.
    """

    indexed: int
    read_after: int

    @property
    def unsearched(self) -> int:
        return self.read_after - self.indexed


def condition(readers: Readers, writer: Writer, query: str) -> tuple[str, list[Any], int]:
    """SQL, and its values, that is true for a row `g` of groups whose prompt or completions contain
    `query`; and how many completions it leaves out.
    """
    query = text(query).strip()[:MAX_CHARS]
    pattern = like(query)
    # All distinct trigrams must occur; 32 are selective enough. Quoted, they are text and never
    # syntax.
    trigrams = trigrams_of(query)
    reach = catch_up(readers, writer) if trigrams else Reach(0, 0)
    sql = (
        "g.prompt LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM rollouts r WHERE r.group_id = g.id "
        "AND r.id > ? "
        "AND r.text LIKE ? ESCAPE '\\')"
    )
    values = [pattern, reach.read_after, pattern]
    if reach.indexed:
        sql += (
            " OR g.id IN (SELECT r.group_id FROM rollouts r WHERE r.text LIKE ? ESCAPE '\\' AND "
            "r.id IN "
            "(SELECT rowid FROM completions_fts WHERE completions_fts MATCH ?))"
        )
        values += [pattern, trigrams]
    return f"({sql})", values, reach.unsearched


COMMON = 20_000  # completions that may have a text in them, from which on reading group after group finds a page sooner than the index


def is_common(readers: Readers, query: str) -> bool:
    """Whether the index names so many completions for `query` that looking at all of them takes
    longer than finding the first among the newest.
    """
    trigrams = trigrams_of(text(query).strip()[:MAX_CHARS])
    found = trigrams and readers.all(
        "SELECT COUNT(*) FROM (SELECT 1 FROM completions_fts WHERE completions_fts MATCH ? LIMIT "
        "?)",
        (trigrams, COMMON + 1),
    )
    return bool(found) and found[0][0] > COMMON


def read(query: str) -> tuple[str, list[Any]]:
    """As `condition`, without the index: prompt and completions are read."""
    pattern = like(text(query).strip()[:MAX_CHARS])
    return (
        "(g.prompt LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM rollouts r WHERE r.group_id = "
        "g.id AND r.text LIKE ? ESCAPE '\\'))",
        [pattern, pattern],
    )


def trigrams_of(query: str) -> str:
    """An FTS5 query that every text with `query` in it meets.

    Empty for one too short to have a trigram.
    """
    return " AND ".join(
        '"' + t.replace('"', '""') + '"'
        for t in list(dict.fromkeys(query[i : i + 3] for i in range(len(query) - 2)))[:32]
    )


def like(query: str) -> str:
    """A LIKE pattern, ESCAPE '\\', for texts that contain `query`."""
    return "%" + query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def forget(db: sqlite3.Connection) -> None:
    """Empties the index.

    Needed whenever rollouts are deleted: SQLite gives their ids to new ones, which would count as
    indexed.
    """
    db.execute("INSERT INTO completions_fts (completions_fts) VALUES ('delete-all')")


def catch_up(readers: Readers, writer: Writer) -> Reach:
    """Brings the index nearer to the newest rollout if it is far behind, and has a thread bring it
    there; says what can be searched now.
    """
    indexed, newest = _ends(readers)
    if newest - indexed > (BATCH if indexed else SCANNED):
        indexed = _index(readers, writer, time.monotonic() + BUDGET_SECONDS)
        if newest - indexed > SCANNED:
            _go_on(readers, writer)
    return Reach(indexed, max(indexed, newest - SCANNED))


def _index(readers: Readers, writer: Writer, until: float) -> int:
    """Adds batches until then, or until all is there.

    Returns the last rollout id that is in the index.
    """
    indexed, newest = _ends(readers)
    try:
        writer.hold(wait_seconds=0)
        try:
            while indexed < newest:
                with writer.transaction() as db:
                    db.execute(
                        "INSERT INTO completions_fts (rowid, text) SELECT id, text FROM "
                        f"rollouts WHERE id > ({_INDEXED}) "
                        "ORDER BY id LIMIT ?",
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
    """One thread a file builds the rest.

    It is a daemon: a batch is a transaction, so wherever it ends the index is right as far as it
    goes.
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
    """The last rollout id in the index, and the last there is."""
    return tuple(
        readers.all(f"SELECT ({_INDEXED}), (SELECT COALESCE(MAX(id), 0) FROM rollouts)")[0]
    )


_starting = threading.Lock()
_INDEXED = "SELECT COALESCE(MAX(id), 0) FROM completions_fts_docsize"  # the table in which FTS5 lists what it holds
