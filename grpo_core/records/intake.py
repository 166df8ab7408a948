"""Writes the parcels of attached trainers into a store, and notices when one falls silent."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from grpo_core.errors import StudioError
from grpo_core.records.parcels import Parcel
from grpo_core.records.record import SourceRun, SourceStep
from grpo_core.records.writer import RecordWriter
from grpo_core.store import Store
from grpo_core.types import RunStatus

# A trainer gives a sign of life every ten seconds. A run is interrupted well within a minute, but
# not by a slow network.
SILENT_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Taken:
    """The run that a parcel was written to, and how many of its steps were new."""

    run_id: str
    written: int
    known: int


@dataclass(slots=True)
class _Open:
    """A live run: its writer holds the file."""

    writer: RecordWriter
    holding: ExitStack
    heard_at: float = field(default=0.0)


class Intake:
    """Parcels of any number of runs; from any thread, one at a time."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic):
        self._store, self._clock = store, clock
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()

    def take(self, parcel: Parcel) -> Taken:
        """Write a parcel; what is there already is left as it is. Raises StudioError."""
        with self._lock:
            try:
                return self._take(parcel)
            except BaseException:
                # Undone in this thread, which holds the transaction; the next parcel begins anew.
                self._close(parcel.run.key, *sys.exc_info())
                raise

    def _take(self, parcel: Parcel) -> Taken:
        opened = self._open.get(parcel.run.key) or self._begin(parcel.run)
        writer, written, known = opened.writer, 0, 0
        for _, value in parcel.events:
            if isinstance(value, SourceStep):
                if writer.write(value):
                    written += 1
                else:
                    known += 1
            elif isinstance(value, int):
                writer.progress(value)
            else:
                writer.finish(value.status, value.error)
                self._close(parcel.run.key)
                return Taken(writer.run_id, written, known)
        opened.heard_at = self._clock()
        return Taken(writer.run_id, written, known)

    def _begin(self, run: SourceRun) -> _Open:
        self._store.recover()  # what this run's killed trainer left live is not
        holding = ExitStack()
        writer = holding.enter_context(RecordWriter(self._store, run, live=True))
        opened = self._open[run.key] = _Open(writer, holding)
        return opened

    def _close(self, key: str, *error: Any) -> None:
        """Let go of a run. If it is still live, whoever holds the file next interrupts it."""
        opened = self._open.pop(key, None)
        if opened is not None:
            self._store.disown(opened.writer.run_id)
            opened.holding.__exit__(*(error or (None, None, None)))

    def interrupt_silent(self) -> list[str]:
        """End the runs whose trainer has said nothing for long; their ids."""
        ended = []
        with self._lock:
            for key, opened in list(self._open.items()):
                if self._clock() - opened.heard_at < SILENT_SECONDS:
                    continue
                try:
                    opened.writer.finish(RunStatus.INTERRUPTED)
                    ended.append(opened.writer.run_id)
                    self._close(key)
                except StudioError:  # the file cannot be written: tried again
                    continue
        return ended

    def close(self) -> None:
        """Let go of the file and all runs."""
        with self._lock:
            for key in list(self._open):
                self._close(key)
