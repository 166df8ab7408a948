"""One small class per situation that a user can be in. Each message names the field, the value and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class StudioError(Exception):
    """Base of everything that is the user's to solve. Shown as one line, never as a traceback."""


@dataclass(frozen=True)
class FieldProblem:
    """What is wrong with one field of the configuration, in three parts that a form can show beside the field."""

    field: str  # dotted name, e.g. "train.group_size"
    value: Any
    problem: str  # "must be at least 2"
    hint: str  # "Use 8, or any number from 2 up."

    def __str__(self) -> str:
        shown = repr(self.value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        return f"{self.field} = {shown}: {self.problem}. {self.hint}".strip()


class InvalidConfig(StudioError):
    """The configuration cannot be run. Carries every problem at once, so that a person mends them in one go."""

    def __init__(self, problems: list[FieldProblem]):
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


class StoreError(StudioError):
    """The SQLite file cannot be used as asked (not a database, not writable, newer than this version)."""


class StoreBusy(StoreError):
    """Another process is writing to the file: one writer a file."""


class StoreFull(StoreError):
    """The disk has no room for the record."""


class NotFound(StudioError):
    """A run, group or step that is not in the store."""


class OutOfMemory(StudioError):
    """Not even one completion fits the memory that there is."""


class StopRequested(Exception):
    """Raised inside the trainer at the named point where it noticed that somebody asked it to stop."""


class DiskFull(StudioError):
    """There is no room for what has to be kept. The run waits until there is."""
