"""Sends what a trainer records from a thread of its own, so that no file or network delays it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from grpo_core.records.parcels import (
    Event,
    Finish,
    Parcel,
    TooLarge,
    pack,
    read,
    unzip,
    without_tokens,
)
from grpo_core.records.record import SourceRun
from grpo_core.records.sinks import Away, Refused, Sink
from grpo_core.records.spool import Spool
from grpo_core.types import RunStatus

MAX_QUEUED = 512 << 20  # bytes of tensors that wait in memory
BEAT_SECONDS = 10.0  # between two signs of life
FIRST_RETRY, LAST_RETRY = 1.0, 15.0  # seconds until the next try, doubled each time
PATIENCE_SECONDS = 15.0  # at the end, for a destination that does not answer
MAX_END_SECONDS = 120.0  # for one that takes long to take everything
log = logging.getLogger("grpo_studio")

Convert = Callable[[Any], Iterable[Event]]


class Outbox:
    """A bounded queue, a thread that empties it, and a spool for what cannot be sent now."""

    def __init__(self, run: SourceRun, sink: Sink, spool: Path, convert: Convert):
        """convert: what the trainer put in -> events; called in the thread."""
        self._run, self._sink, self._convert = run, sink, convert
        self._spool = Spool(spool, sink.name, run.key)
        self._changed = threading.Condition()
        self._items: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._ending_at: float | None = None
        self._told: set[str] = set()
        self._step = 0
        self._is_away = False  # the last try failed
        self._wait = FIRST_RETRY
        self._retry_at = self._beat_at = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="grpo studio", daemon=True)
        self._thread.start()

    def put(self, item: Any, num_bytes: int = 0) -> None:
        """Take a copy of the trainer's data; never waits."""
        with self._changed:
            if self._bytes + num_bytes <= MAX_QUEUED:
                self._items.append((item, num_bytes))
                self._bytes += num_bytes
                self._changed.notify()
                return
        self.tell("queue", "records come faster than they can be kept; some are lost")

    def close(self) -> None:
        """Wait until everything is sent, or on the disk because nobody takes it."""
        with self._changed:
            self._ending_at = time.monotonic()
            self._changed.notify()
        self._thread.join(MAX_END_SECONDS)
        if waiting := len(self._spool):
            self.tell(
                "end",
                f"{waiting} parcels of this run wait in {self._spool.folder}. "
                "They are sent when a trainer with the same output_dir is attached again",
            )

    def tell(self, about: str, text: str) -> None:
        """Warn once about each trouble."""
        if about not in self._told:
            self._told.add(about)
            log.warning("GRPO Studio: %s. Training goes on.", text)

    # ---- the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        self._guard(self._take_over)
        while not self._is_done():
            item = self._next()
            if item is not None:
                self._guard(lambda item=item: self._record(item))
            self._guard(self._resend)
            self._guard(self._beat)
        self._guard(self._spool.close)
        self._guard(self._sink.close)

    def _guard(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # recording must never end a training
            self.tell("bug", f"recording failed: {type(error).__name__}: {error}")
            log.debug("recording failed", exc_info=True)

    def _is_done(self) -> bool:
        with self._changed:
            if self._ending_at is None or self._items:
                return False
            if not self._spool:
                return True
            now = time.monotonic()
            gone = self._is_away and now - self._ending_at > PATIENCE_SECONDS
            return gone or now - self._ending_at > MAX_END_SECONDS

    def _next(self) -> Any:
        """The next item, or None when it is time for something else."""
        with self._changed:
            was_ending = self._ending_at is not None
            due = self._retry_at if self._spool else self._beat_at
            seconds = min(due - time.monotonic(), 0.2 if was_ending else BEAT_SECONDS)
            self._changed.wait_for(
                lambda: self._items or (self._ending_at is not None) != was_ending,
                max(0.0, seconds),
            )
            if not self._items:
                return None
            item, num_bytes = self._items.popleft()
            self._bytes -= num_bytes
            return item

    def _record(self, item: Any) -> None:
        for event in self._convert(item):
            self._step = event[1].step if event[0] == "step" else self._step
            self._deliver(Parcel(self._run, [event]))

    def _deliver(self, parcel: Parcel) -> None:
        """Send a parcel or keep it; without its tokens if it is too large."""
        try:
            try:
                self._send_or_keep(parcel)
            except TooLarge as problem:
                self.tell("large", f"{problem}; such groups are recorded without their tokens")
                self._send_or_keep(without_tokens(parcel))
        except TooLarge as problem:
            self.tell("huge", f"{problem} even without tokens, and is left out")
        except Refused as problem:
            self.tell("refused", f"a record is not taken: {problem}")
        except OSError as problem:
            text = f"records are lost, because {self._spool.folder} cannot be written: {problem}"
            self.tell("spool", text)

    def _send_or_keep(self, parcel: Parcel) -> None:
        """Raises TooLarge, Refused, OSError."""
        if not self._spool:
            try:
                self._sink.send(parcel)
                self._arrived()
                return
            except Away as problem:
                self._failed(problem)
        self._spool.add(pack(parcel))

    def _resend(self) -> None:
        """Send the first of what waits. One at a time, so that the queue stays short."""
        if not self._spool or time.monotonic() < self._retry_at:
            return
        try:
            self._sink.resend(self._spool.first())
            self._spool.sent()
            self._arrived()
        except Away as problem:
            self._failed(problem)
        except (Refused, OSError) as problem:
            kept = self._spool.refused()
            self.tell("refused", f"a record is not taken and kept as {kept}: {problem}")

    def _beat(self) -> None:
        if self._spool or self._ending_at is not None or time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + BEAT_SECONDS
        try:
            self._sink.send(Parcel(self._run, [("progress", self._step)]))
            self._arrived()
        except Away as problem:
            self._failed(problem)
        except Refused as problem:
            self.tell("refused", f"a record is not taken: {problem}")

    def _arrived(self) -> None:
        if self._is_away and not self._spool:
            log.info("GRPO Studio: all that waited has been sent to %s", self._sink.name)
        self._is_away = False
        self._wait, self._beat_at = FIRST_RETRY, time.monotonic() + BEAT_SECONDS

    def _failed(self, problem: Away) -> None:
        now = time.monotonic()
        self._is_away = True
        self._retry_at = now + max(self._wait, problem.after)
        self._wait = min(2 * self._wait, LAST_RETRY)
        where = f"What is recorded waits in {self._spool.folder}, and is sent when it can be"
        self.tell("away", f"{str(problem).rstrip('.')}. {where}")

    def _take_over(self) -> None:
        """What killed trainers left is sent first."""
        self._spool.open(_last_word)


def _last_word(packed: bytes) -> bytes | None:
    """What ends a run whose trainer was killed; None if it ended by itself."""
    last = read(unzip(packed))
    if any(kind == "finish" for kind, _ in last.events):
        return None
    return pack(Parcel(last.run, [("finish", Finish(RunStatus.INTERRUPTED))]))
