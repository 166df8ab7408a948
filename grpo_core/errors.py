"""Errors that a user can solve, one class for each kind.

Each message names the field, the value and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class StudioError(Exception):
    """Base of all errors that the user can solve. Shown as one line, never as a traceback."""


@dataclass(frozen=True)
class FieldProblem:
    """What is wrong with one field of the configuration; a form shows it beside the field."""

    field: str  # dotted name, e.g. "train.group_size"
    value: Any
    problem: str  # "must be at least 2"
    hint: str  # "Use 8, or any number from 2 up."

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        return f"{self.field} = {shown}: {self.problem}. {self.hint}".strip()


class InvalidConfig(StudioError):
    """The configuration cannot be run. `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[FieldProblem]):
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


class StoreError(StudioError):
    """The SQLite file cannot be used: not a database, not writable, or newer than this version."""


class StoreBusy(StoreError):
    """Another process is writing to the file. A file can have only one writer."""


class StoreFull(StoreError):
    """The disk has no room for more rows of a run."""


class StoreAway(StoreError):
    """The file cannot be used for now: moved, deleted, replaced, read-only, or on a bad disk."""


class StoreLocked(StoreAway):
    """Another program locks the file. It can be written again when that program is done."""


class NotFound(StudioError):
    """The store does not hold this run, group or step."""


class OutOfMemory(StudioError):
    """The available memory does not fit even one completion."""


class StopRequested(Exception):
    """Raised in the trainer, at one of its interruption points, when a user stops the run."""


class NonFinite(ArithmeticError):
    """The loss or the gradient is nan or inf. The weights are unchanged."""


class DiskFull(StudioError):
    """The disk has no room for what the run must keep. The run waits until there is room."""
