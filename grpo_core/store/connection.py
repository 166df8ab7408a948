"""Connections to a file: at most one that writes, any number that read."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from grpo_core.errors import StoreAway, StoreBusy, StoreError
from grpo_core.store.problems import damaged, explain, explained
from grpo_core.store.unclean import Identity, first_damage, has_live_runs, identity

IDLE_SECONDS = 10.0  # an idle reading connection is closed after this
LOCK_SECONDS = 1.0  # wait for another process to finish a short write, such as a rename
# Wait for a lock of another program. A run tries again; a page's request gets a message soon.
BUSY_SECONDS = 1.0

# FULL: a step that was said to be recorded survives a power cut, not only a crash. It costs 4 ms
# once a step. auto_vacuum works only if it comes before the first table, and even before WAL.
# journal_size_limit: after a burst (deleting a large run) the log does not stay large.
SETTINGS = """
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA foreign_keys = ON;
    PRAGMA wal_autocheckpoint = 1000;
    PRAGMA journal_size_limit = 67108864;
"""


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """mode "ro" can neither write nor checkpoint. "rw" never creates, so a lost file is noticed."""
    # isolation_level None: transactions are ours, begun IMMEDIATE. Python's implicit ones begin
    # deferred and can then fail with SQLITE_BUSY_SNAPSHOT at once, whatever the timeout.
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


class Writer:
    """The writing connection to a file, shared by this process, open only while somebody holds it.

    One for each file and process: SQLite before 3.51.3 can corrupt a WAL with two. Between
    processes a lock file keeps the order. The system frees it when its holder dies, so whoever gets
    it knows that no other process works on a run.
    """

    _of_file: ClassVar[WeakValueDictionary[Path, Writer]] = WeakValueDictionary()
    _registry = threading.Lock()

    @classmethod
    def of(cls, path: Path) -> Writer:
        """The writer of this file. `path` is resolved, so that links share one."""
        with cls._registry:
            writer = cls._of_file.get(path)
            if writer is None:
                writer = cls._of_file[path] = cls(path)
            return writer

    def __init__(self, path: Path):
        self.path = path
        self.connection: sqlite3.Connection | None = None
        # The live runs of this process. While there is one, the file is held.
        self.owned: set[str] = set()
        self.indexer: threading.Thread | None = None  # builds the search index, see search.py
        self.trouble = ""  # why the last write failed, in one line; empty after one that worked
        self.damage = ""  # why nothing may be written to the file, in one line
        self._holders = 0
        self._inodes: list[int | None] = []  # of the file and its log
        self._log_file = f"{path}-wal"
        self._log_when_closed: Identity | None = None
        self._was_open = False
        self._damaged_files: list[Identity | None] = []
        self._mutex = threading.RLock()
        # Not thread-local: a hold may be taken by the thread that starts a run and released by the
        # one that ends it.
        self._lock = FileLock(f"{path}.lock", thread_local=False)

    def hold(self, wait_seconds: float) -> None:
        """Hold the file, counted. Raises StoreBusy if another process holds it for longer."""
        with self._mutex:
            if self._holders == 0:
                with self._noting_trouble():
                    self._open(wait_seconds)
            self._holders += 1

    def release(self) -> None:
        with self._mutex:
            self._holders -= 1
            if self._holders == 0:
                self._close()

    def own(self, run_id: str) -> None:
        with self._mutex:
            if run_id not in self.owned:
                self.hold(0)
                self.owned.add(run_id)

    def disown(self, run_id: str) -> None:
        with self._mutex:
            if run_id in self.owned:
                self.owned.remove(run_id)
                self.release()

    @property
    def held_connection(self) -> sqlite3.Connection:
        """The open connection. Somebody must hold the file."""
        assert self.connection is not None, "the file is not held: use store.writing()"
        return self.connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, one thread at a time.

        A nested one joins the outer. The file must be held.
        """
        with self._mutex, self._noting_trouble(), explained(self.path):
            connection = self.held_connection
            self._check_still_there()
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
                self.trouble = ""
            except BaseException:
                # After a full disk SQLite has already rolled back.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def shrink(self) -> None:
        """Give free pages back to the disk, a few megabytes at a time, so no run waits long."""
        with explained(self.path):
            free, before = self._free_pages(), -1
            # No progress: another program made the file without auto_vacuum.
            while free not in (0, before):
                with self._mutex:
                    # A script, because execute() stops after the first page of them, and then syncs
                    # once a page.
                    self.held_connection.executescript("PRAGMA incremental_vacuum(2000)")
                free, before = self._free_pages(), free
            with self._mutex:
                # The file itself gets shorter only here. Readers may be in the way: then the next
                # checkpoint does it.
                self.held_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _free_pages(self) -> int:
        with self._mutex:
            return self.held_connection.execute("PRAGMA freelist_count").fetchone()[0]

    def _open(self, wait_seconds: float) -> None:
        try:
            self._lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise StoreBusy(
                f"--db {str(self.path)!r} is in use: another process is writing to it. "
                "Wait until its run has ended, or name another file with --db."
            ) from None
        except OSError as error:
            raise explain(self.path, error) from error
        try:
            with explained(self.path):
                self._refuse_damage()
                self.connection = connect(self.path, "rw")
                self.connection.executescript(SETTINGS)
                self._inodes = [_inode(self.path), _inode(self._log_file)]
        except BaseException:
            self._close()
            raise

    def _refuse_damage(self) -> None:
        """Check the file if its last writer did not close it properly. Raises StoreError.

        A writer that ends properly empties the log and leaves no live run. Nothing is written to a
        damaged file, so its log stays for a person to save.
        """
        files = [identity(self.path), identity(self._log_file)]
        log = files[1]
        if self.damage and files == self._damaged_files:
            raise StoreError(self.damage)
        self.damage = ""
        first, self._was_open = not self._was_open, True
        closed_here = log is None or log == self._log_when_closed
        if closed_here and not first:
            return
        with closing(connect(self.path, "ro")) as conn:
            if log is None and not has_live_runs(conn):
                return
            found = first_damage(conn)
        if found:
            self._damaged_files = files
            self.damage = damaged(self.path, found)
            raise StoreError(self.damage)

    def _check_still_there(self) -> None:
        """Raise if a file was deleted: SQLite would write on, and all of it would be lost."""
        if self._inodes != [_inode(self.path), _inode(self._log_file)]:
            raise StoreAway(
                f"--db {str(self.path)!r} was deleted or replaced while it was in use. Put it "
                "back, or restart with another --db."
            )

    @contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        try:
            yield
        except StoreBusy:  # another of our processes writes, which is no trouble
            raise
        except StoreError as problem:
            self.trouble = str(problem)
            raise

    def _close(self) -> None:
        try:
            if self.connection is not None:
                # SQLite keeps the log while readers have the file open. Emptied, it tells the next
                # writer that nothing was lost.
                if identity(self._log_file) is not None:
                    with contextlib.suppress(sqlite3.Error):
                        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self.connection.close()
                self._log_when_closed = identity(self._log_file)
        finally:
            self.connection = None
            self._lock.release()


def _inode(path: Path | str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


class Readers:
    """Read-only connections, each used by one thread at a time; idle ones are closed."""

    def __init__(self, path: Path):
        self._path = path
        # With the file that they read and the time of their last use, the latest on the right.
        self._idle: deque[tuple[sqlite3.Connection, int | None, float]] = deque()

    def all(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        """Every row at once.

        A half-read result would hold back checkpoints, and the log would grow.
        """
        with explained(self._path):
            file = _inode(self._path)
            connection = self._connection(file)
            try:
                return connection.execute(sql, values).fetchall()
            finally:
                self._idle.append((connection, file, time.monotonic()))
                self._close_idle()

    def _connection(self, file: int | None) -> sqlite3.Connection:
        """A connection to the file that is there now: a deleted one could still be read."""
        while True:
            try:
                connection, opened, _ = self._idle.pop()
            except IndexError:
                break
            if opened == file:
                return connection
            connection.close()
        connection = connect(self._path, "ro")
        connection.row_factory = sqlite3.Row
        return connection

    def _close_idle(self) -> None:
        """Close the connection that has been idle for longest, if that is long."""
        try:
            connection, _, used_at = oldest = self._idle.popleft()
        except IndexError:  # somebody took the last one
            return
        if time.monotonic() - used_at > IDLE_SECONDS:
            connection.close()
        else:
            self._idle.appendleft(oldest)

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[0].close()


def file_bytes(path: Path) -> int:
    """Bytes of the file and its log on the disk.

    By stat: opening and closing the file would drop SQLite's locks on it.
    """
    return sum(os.stat(p).st_size for p in (f"{path}", f"{path}-wal") if os.path.exists(p))
