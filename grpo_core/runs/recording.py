"""Record the events of a run, and wait while the file cannot be written.

A run is hours of somebody's time: a full disk, a lock of another program or a file that was moved
away must not end it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from grpo_core.errors import StopRequested, StoreAway, StoreError, StoreFull, StoreLocked
from grpo_core.runs.disk_reserve import Reserve
from grpo_core.store import Recorder
from grpo_core.training.control import RunControl
from grpo_core.types import Checkpointed, Event, Paused, PhaseStarted, Resumed

RETRY_SECONDS = 0.5
log = logging.getLogger("grpo_studio")


class Recording:
    """Writes each event before it returns, or waits until it can; Stop ends the wait.

    On a full disk the run waits for a person. If the file is locked or away, it goes on by itself
    as soon as the file can be written.
    """

    def __init__(self, record: Recorder, control: RunControl, reserve: Reserve):
        self.store = record.store
        self._record, self._control, self._reserve = record, control, reserve
        # Events of a stopped run whose file could not be written.
        self._late: list[Event] = []
        self._waiting_since: float | None = None
        self._told = ""

    def __call__(self, event: Event) -> None:
        """Raises StoreError if the event cannot be recorded, StopRequested as `_keep` does."""
        while not self._late:
            try:
                if isinstance(event, Resumed):
                    self._reserve.refill()
                self._record(event)
                self._go_on()
                return
            except StoreFull as problem:
                if isinstance(event, Paused | Resumed):
                    # The reserve was too small. The pause holds even without its row.
                    log.warning("%s", problem)
                    return
                if self._control.stop_requested:
                    raise
                self._reserve.release()
                self._control.points.hold(
                    f"{problem} At least {_needed_mib(self._record)} MiB are needed. "
                    "Then press Resume; no data is lost until then."
                )
            except StoreAway as problem:
                if self._control.stop_requested:
                    break
                self._wait(problem)
        self._keep(event)

    def write(self, action: Callable[[], object]) -> None:
        """Call `action`, which writes to the store, after what is late; wait for a locked file.

        Raises StoreError if the file is away or cannot be written for another reason.
        """
        while True:
            try:
                while self._late:
                    self._record(self._late[0])
                    del self._late[0]
                action()
                self._go_on()
                return
            except StoreLocked as problem:
                self._wait(problem)

    def heartbeat(self) -> None:
        """Record a sign of life. If that fails, the log tells why, once for each reason."""
        try:
            self._record.heartbeat()
            self._told = ""
        except StoreError as problem:  # the trainer's next write meets it too
            self._tell(problem)

    def _keep(self, event: Event) -> None:
        """Remember an event of a stopped run until the file can be written.

        A checkpoint ends the run at once: the trainer must not delete older ones, because their
        rows are still there and its own is not.
        """
        if isinstance(event, Checkpointed):
            self._late.append(replace(event, dropped=()))
            self._go_on()
            raise StopRequested(self._control.stop_reason)
        if not isinstance(event, PhaseStarted):
            self._late.append(event)

    def _wait(self, problem: StoreError) -> None:
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
            self._control.points.timer.pause()
            self._tell(problem)
            log.warning("the run waits, and goes on by itself when the file can be written")
        with self._control.changed:
            self._control.changed.wait(RETRY_SECONDS)

    def _go_on(self) -> None:
        if self._waiting_since is not None:
            seconds = time.monotonic() - self._waiting_since
            self._waiting_since, self._told = None, ""
            self._control.points.timer.resume()
            log.warning("the run waited %.0f s for the file, and goes on", seconds)

    def _tell(self, problem: StoreError) -> None:
        if str(problem) != self._told:
            self._told = str(problem)
            log.warning("%s", problem)


def _needed_mib(record: Recorder) -> int:
    """Disk space for ten more steps, estimated from the size of the store per recorded step."""
    store = record.store
    return max(2, 10 * store.file_bytes() // max(1, store.run(record.run_id).steps_done) // 2**20)
