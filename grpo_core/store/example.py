"""The recorded example run: what a new file shows before its first run.

It ships as a small store with one run, compressed, without checkpoints.
`python -m scripts.record_example` makes it again.
"""

from __future__ import annotations

import atexit
import lzma
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from functools import cache
from pathlib import Path

from grpo_core.errors import StoreBusy
from grpo_core.store.store import Store

EXAMPLE_FILE = Path(__file__).with_name("example.sqlite.xz")
# In an order in which no row refers to a missing one.
TABLES = (
    "runs",
    "steps",
    "metrics",
    "groups",
    "rollouts",
    "turns",
    "token_records",
    "token_pieces",
)


def add_example(store: Store, file: Path = EXAMPLE_FILE) -> bool:
    """Put the example run into a file that has no run and never had the example.

    Returns whether it did. A deleted example stays away.
    """
    if store.runs() or not file.is_file():  # a package may leave the file out
        return False
    with tempfile.TemporaryDirectory() as folder:
        unpacked = _unpack(file, Path(folder))
        Store(unpacked).close()  # migrates it
        try:
            with closing(sqlite3.connect(unpacked)) as source:
                return _copy(source, store)
        except StoreBusy:  # another process writes: the file is not new
            return False


@cache
def example_store() -> Store | None:
    """The example in a file of its own, which lives as long as this process; None without it."""
    if not EXAMPLE_FILE.is_file():
        return None
    folder = Path(tempfile.mkdtemp(prefix="grpo-example-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Store(_unpack(EXAMPLE_FILE, folder))


def _unpack(file: Path, folder: Path) -> Path:
    unpacked = folder / "example.sqlite"
    unpacked.write_bytes(lzma.decompress(file.read_bytes()))
    return unpacked


def _copy(source: sqlite3.Connection, store: Store) -> bool:
    with store.writing() as writer, writer.transaction() as db:
        had = db.execute("SELECT 1 FROM once WHERE what = 'example'").fetchone()
        if had or store.runs():
            return False
        for table in TABLES:  # no other run has rows, so every row keeps its id
            rows = source.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in rows.description]
            db.executemany(
                f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
                rows,
            )
        db.execute("UPDATE runs SET example = 1")
        db.execute("INSERT INTO once (what, at) VALUES ('example', ?)", (time.time(),))
    return True
