"""Copies of the store on storage that is no place for a live file: a bucket mounted into a container whose own disk is lost at every restart."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from grpo_core.errors import StoreError
from grpo_core.store.connection import connect


class Snapshots:
    """One whole copy of a store in a folder, renewed when the store has changed and `seconds` have passed."""

    def __init__(self, db: Path, folder: Path, seconds: float = 60.0):
        self._db, self._copy, self._seconds = db, folder / db.name, seconds
        self._at, self._version = time.monotonic(), None

    def restore(self) -> bool:
        """Before the store is opened: the copy takes the place of a file that is not there. Whether it did."""
        if self._db.exists() or not self._copy.is_file():
            return False
        self._db.parent.mkdir(parents=True, exist_ok=True)
        part = self._db.with_name(self._db.name + ".part")
        shutil.copyfile(self._copy, part)
        try:
            with closing(sqlite3.connect(part)) as conn:
                whole = conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        except sqlite3.DatabaseError:
            whole = False
        if not whole:
            part.unlink()
            raise StoreError(f"the snapshot {str(self._copy)!r} is damaged. Move it away to start with an empty file.")
        part.rename(self._db)
        return True

    def renew(self, now: bool = False) -> bool:
        """Make a copy if it is time and something changed: VACUUM INTO a file on the local disk, copied and then renamed. Whether it did."""
        if not now and time.monotonic() - self._at < self._seconds:
            return False
        self._at = time.monotonic()
        with closing(connect(self._db, "ro")) as conn:
            version = conn.execute("SELECT COALESCE(SUM(revision), 0), COUNT(*) FROM runs").fetchone()
            if version == self._version:
                return False
            local = self._db.with_name(self._db.name + ".snapshot")
            local.unlink(missing_ok=True)
            conn.execute("VACUUM INTO ?", (str(local),))
        self._copy.parent.mkdir(parents=True, exist_ok=True)
        part = self._copy.with_name(self._copy.name + ".part")
        shutil.copyfile(local, part)
        local.unlink()
        part.replace(self._copy)
        self._version = version
        return True
