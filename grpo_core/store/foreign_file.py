"""Read tables of a SQLite file that another program wrote, without trusting or changing it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from grpo_core.errors import StoreError

SECONDS = 300.0  # for all reading; a crafted file could make a query endless
MAX_CELL_BYTES = 64 << 20
# What a SELECT of columns of real tables needs.
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}


class ForeignFile:
    """Tables of a SQLite file, as rows of columns. Raises StoreError. Use it in a `with` block.

    Views, triggers, functions and attached files of the file have no effect.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            with path.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise StoreError(f"{path} is not a SQLite file.")
            self._db = self._open(path)
            self._tables = self._known_tables()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be read: {error}.") from None

    def _open(self, path: Path) -> sqlite3.Connection:
        # Without its log nobody writes the file; reading it must not create one.
        is_quiet = not path.with_name(f"{path.name}-wal").exists()
        mode = "mode=ro&immutable=1" if is_quiet else "mode=ro"
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=5.0)
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA mmap_size = 0")
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL_BYTES)
        db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        deadline = time.monotonic() + SECONDS
        db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        db.text_factory = lambda data: data.decode("utf-8", "replace")
        return db

    def _known_tables(self) -> dict[str, list[str]]:
        names = self._db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        tables = {
            name: [row[1] for row in self._db.execute(f"PRAGMA table_info({_quoted(name)})")]
            for (name,) in names[:1000]
        }
        self._db.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY
        )
        return tables

    def __enter__(self) -> ForeignFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._db.close()

    def columns(self, table: str) -> Sequence[str]:
        """The names of the columns of a table; () if there is no such table."""
        return self._tables.get(table, ())

    def rows(
        self,
        table: str,
        columns: Sequence[str],
        order: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The rows of a table. A column that it lacks is None in every row.

        where: values that columns must have; one that the table lacks is not asked for.
        """
        known = [name for name in columns if name in self.columns(table)]
        if not known:
            return
        query = f"SELECT {', '.join(map(_quoted, known))} FROM {_quoted(table)}"
        asked = {k: v for k, v in (where or {}).items() if k in known}
        if asked:
            query += f" WHERE {' AND '.join(f'{_quoted(k)} = ?' for k in asked)}"
        by = [_quoted(name) for name in order if name in known]
        query += f" ORDER BY {', '.join(by)}" if by else ""
        try:
            with closing(self._db.execute(query, [*asked.values()])) as cursor:
                for row in cursor:
                    yield {**dict.fromkeys(columns), **dict(zip(known, row, strict=True))}
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}, in its table {table}.") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
