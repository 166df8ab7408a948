"""Files that a person names: which may be read, and the one way to open them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from grpo_core.config.places import local_path, may_read
from grpo_core.errors import FieldProblem, InvalidConfig

MAX_ROW_CHARS = 1_000_000
MAX_COLUMNS = 1_000


class BadSource(InvalidConfig):
    """A file or dataset that cannot be read as prompts."""

    def __init__(self, path: str, problem: str, hint: str, field: str = "task.path"):
        super().__init__([FieldProblem(field, path, problem, hint)])


def is_file(path: str) -> bool:
    """Whether there is a regular file that may be read, after following links."""
    return (place := _place(path)) is not None and place.is_file()


def why_no_file(path: str) -> str:
    """What is in a file's place: a folder, a pipe, a device; "" if nothing, or nothing to see."""
    if (place := _place(path)) is None or place.is_file():
        return ""
    if place.is_dir():
        return "it is a folder on this machine"
    return "it is not a regular file: it is a pipe, a socket or a device"


def _place(path: str) -> Path | None:
    """The resolved path of something that exists and that this server may read; else None."""
    if path.startswith("hf://"):
        return None
    try:
        place = local_path(path)
        return place if place is not None and place.exists() and may_read(place) else None
    except (OSError, ValueError):  # too long for a name, a NUL byte, a loop of links
        return None


def open_file(path: str) -> BinaryIO:
    """Open a file that `is_file` allows. Raises OSError."""
    if (place := _place(path)) is None:
        raise OSError(0, "it is not a file that may be read")
    return open_regular(place)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file. Raises OSError for all else, and never waits, as it would for a pipe."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(0, "it is not a regular file")
    return open(number, "rb")
