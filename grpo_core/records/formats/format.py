"""What a reader of a format is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from grpo_core.records.record import SourceRun, SourceStep


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files.

    name: its key in FORMATS; title: as people call it. finds: whether a file or folder is of it,
    told by its fields. read: the run, then its steps, each in memory only while it is written.
    files: all files that it would read, in order.
    """

    name: str
    title: str
    finds: Callable[[Path], bool]
    read: Callable[[Path], Iterator[SourceRun | SourceStep]]
    files: Callable[[Path], list[Path]]
