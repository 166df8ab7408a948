"""Parcels on the disk, one file each, in the order in which they are to be sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

ENDING = ".json.gz"
MAX_BYTES = 8 << 30  # of all that waits


class Spool:
    """A folder of parcels for one destination and one run; others' leftovers come before it.

    A trainer that was killed leaves its folder behind. The next one with the same folder and
    destination finds it, and the lock tells that nobody else still fills it.
    """

    def __init__(self, root: Path, destination: str, key: str):
        digest = hashlib.sha256(destination.encode()).hexdigest()[:12]
        self.folder = root / f"{digest}-{key}"
        self._root, self._digest = root, digest
        self._files: deque[Path] = deque()
        self._locks: list[FileLock] = []
        self._next = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._files)

    def open(self, last_word: Callable[[bytes], bytes | None]) -> None:
        """Take over what is left. last_word: the last parcel of another run -> one that ends it."""
        found = sorted(self._root.glob(f"{self._digest}-*"), key=_changed)
        for folder in [*(f for f in found if f != self.folder), self.folder]:
            files = sorted(folder.glob(f"*{ENDING}"))
            if not files or not self._lock(folder):
                continue
            number = int(files[-1].name.removesuffix(ENDING)) + 1
            if folder == self.folder:
                self._next = number
            elif (word := last_word(files[-1].read_bytes())) is not None:
                files.append(_written(folder, number, word))
            self._files += files
            self._bytes += sum(f.stat().st_size for f in files)

    def add(self, packed: bytes) -> None:
        """Keep a parcel. Raises OSError if the disk does not take it, or too much waits."""
        if self._bytes + len(packed) > MAX_BYTES:
            raise OSError(f"{self._bytes >> 20:,} MiB wait already")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._locks or Path(self._locks[-1].lock_file).parent != self.folder:
            self._lock(self.folder)
        self._files.append(_written(self.folder, self._next, packed))
        self._next += 1
        self._bytes += len(packed)

    def first(self) -> bytes:
        return self._files[0].read_bytes()

    def sent(self) -> None:
        """The first parcel has arrived."""
        path = self._files.popleft()
        with contextlib.suppress(OSError):
            self._bytes -= path.stat().st_size
            path.unlink()

    def refused(self) -> Path:
        """The first parcel is never taken; it is kept under another name, for a person."""
        path = self._files.popleft()
        kept = path.with_name(f"{path.name}.refused")
        with contextlib.suppress(OSError):
            self._bytes -= path.stat().st_size
            path.replace(kept)
        return kept

    def close(self) -> None:
        """Remove what is empty, and let go of the rest."""
        for lock in self._locks:
            folder = Path(lock.lock_file).parent
            lock.release()
            if not any(folder.glob("[0-9]*")):
                with contextlib.suppress(OSError):
                    Path(lock.lock_file).unlink(missing_ok=True)
                    folder.rmdir()
        self._locks.clear()
        with contextlib.suppress(OSError):
            self._root.rmdir()

    def _lock(self, folder: Path) -> bool:
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return False
        self._locks.append(lock)
        return True


def _written(folder: Path, number: int, packed: bytes) -> Path:
    path = folder / f"{number:08d}{ENDING}"
    part = path.with_suffix(".part")
    part.write_bytes(packed)
    os.replace(part, path)  # half a file is never sent
    return path


def _changed(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0
