"""Disk space reserved during runs, so that a run can still record that the disk is full."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

RESERVED_BYTES = 2**20  # ten times what a few SQLite pages and their log need


class Reserve:
    """A file of `RESERVED_BYTES` that exists inside the `with` block. Disk errors are ignored.

    Runs that go on beside each other share it: the last one that ends frees the space.
    """

    _users: ClassVar[Counter[Path]] = Counter()
    _lock = threading.Lock()

    def __init__(self, path: Path):
        self._path = path
        self._in_use = False

    def __enter__(self) -> Reserve:
        with self._lock:
            self._users[self._path] += 1
            self._in_use = True
        self.refill()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """This run needs it no more. A second call changes nothing."""
        with self._lock:
            if self._in_use:
                self._in_use = False
                self._users[self._path] -= 1
                if not self._users[self._path]:
                    self.release()

    def refill(self) -> None:
        """Occupy the space, if the disk has it."""
        with contextlib.suppress(OSError), self._path.open("wb") as file:
            file.write(bytes(RESERVED_BYTES))
            file.flush()
            os.fsync(file.fileno())

    def release(self) -> None:
        """Free the space."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
