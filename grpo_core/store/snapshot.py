"""Copies of the store on storage that cannot hold a live file, such as a mounted bucket."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from grpo_core.errors import StoreError
from grpo_core.store.connection import connect

log = logging.getLogger("grpo_studio")


class Snapshots:
    """One copy of a store in a folder, renewed when the store has changed and `seconds` have
    passed.
    """

    def __init__(self, db: Path, folder: Path, seconds: float = 60.0):
        self._db, self._copy, self._seconds = db, folder / db.name, seconds
        self._at, self._version = time.monotonic(), None
        self._saved_at: float | None = self._copy.stat().st_mtime if self._copy.is_file() else None
        self._trouble = ""

    def state(self) -> str:
        """Where the copy is and how old, as a sentence."""
        if self._trouble:
            return f"The copy in {self._copy.parent} could not be renewed: {self._trouble}"
        if self._saved_at is None:
            return (
                f"No copy in {self._copy.parent} yet: the first is made within "
                f"{self._seconds:.0f} s of a change."
            )
        return f"Copied to {self._copy.parent} {max(0.0, time.time() - self._saved_at):.0f} s ago."

    def restore(self) -> bool:
        """Before the store is opened: put the copy in place of a missing file. True if it did."""
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
            raise StoreError(
                f"the snapshot {str(self._copy)!r} is damaged. Move it away to start with an "
                "empty file."
            )
        part.rename(self._db)
        return True

    def renew(self, now: bool = False) -> bool:
        """Make a copy if it is time and something changed: VACUUM INTO, copy, rename. True if it
        did.

        If the bucket cannot be reached the server goes on; `state` says so, and the next call tries
        again.
        """
        if not now and time.monotonic() - self._at < self._seconds:
            return False
        self._at = time.monotonic()
        try:
            done, self._trouble = self._renew(), ""
        except (OSError, sqlite3.Error) as error:
            done, self._trouble = False, str(error)
            log.warning("%s", self.state())
        return done

    def _renew(self) -> bool:
        with closing(connect(self._db, "ro")) as conn:
            version = conn.execute(
                "SELECT COALESCE(SUM(revision), 0), COUNT(*), (SELECT COUNT(*) FROM preferences), "
                "(SELECT MAX(created_at) FROM preferences) FROM runs"
            ).fetchone()
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
        self._version, self._saved_at = version, time.time()
        return True
