"""A little space set aside while a run goes on, so that on a full disk there is room to write down that it is full."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

RESERVED = 2**20  # a few pages of SQLite and its log need a tenth of it


class Reserve:
    """A file of `RESERVED` bytes that `release` gives back to the disk and `refill` takes again where there is room."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Reserve:
        self.refill()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def refill(self) -> None:
        with contextlib.suppress(OSError), self._path.open("wb") as file:
            file.write(bytes(RESERVED))
            file.flush()
            os.fsync(file.fileno())

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
