"""Disk space reserved during a run, so that the run can still record that the disk is full."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

RESERVED_BYTES = 2**20  # ten times what a few SQLite pages and their log need


class Reserve:
    """A file of `RESERVED_BYTES` that exists inside the `with` block. Disk errors are ignored."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Reserve:
        self.refill()
        return self

    def __exit__(self, *_: object) -> None:
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
