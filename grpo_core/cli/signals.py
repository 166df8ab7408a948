"""Ctrl-C and SIGTERM on the command line: stop the run, even if its trainer hangs."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from grpo_core.training.control import RunControl

if TYPE_CHECKING:
    from grpo_core.runs.stop_in_time import Patience

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Programs that start this one often pass a terminal's signal on, so that it arrives twice at once.
TWICE_SECONDS = 0.5
AGAIN = (
    "Ended at once. What was recorded is kept, and its last checkpoint counts: resume the run to "
    "continue from there."
)


@contextmanager
def stopped_by_signals(
    control: RunControl, patience: Patience, end_now: Callable[[str], None]
) -> Iterator[None]:
    """The first signal stops the run; a second one, or a trainer that hangs, calls `end_now`.

    A thread reads the signals. The main thread may hang in a kernel or in a file system, where
    Python calls no signal handler. SIGTERM gives the trainer GRACE_SECONDS, however long it saves.
    """
    before = {number: signal.signal(number, _only_wake) for number in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(reader, over, control, patience, end_now), name="signals", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        over.set()
        os.close(writer)
        watcher.join()
        os.close(reader)


def _only_wake(*_: object) -> None:
    """The number of the signal is in the pipe already."""


def _watch(
    reader: int,
    over: threading.Event,
    control: RunControl,
    patience: Patience,
    end_now: Callable[[str], None],
) -> None:
    from grpo_core.runs.stop_in_time import GRACE_SECONDS, LATE

    asked: float | None = None
    terminated = False
    while not over.is_set():
        readable, _, _ = select.select([reader], [], [], None if asked is None else 0.1)
        numbers = [n for n in os.read(reader, 64) if n in SIGNALS] if readable else []
        terminated = terminated or signal.SIGTERM in numbers
        if numbers and asked is None:
            asked = time.monotonic()
            control.stop()
            print("stopping; press Ctrl-C again to end at once", file=sys.stderr, flush=True)
        elif numbers and asked is not None and time.monotonic() - asked > TWICE_SECONDS:
            end_now(AGAIN)
        seconds = GRACE_SECONDS if terminated else patience.seconds
        if asked is not None and time.monotonic() - asked > seconds and not over.is_set():
            end_now(LATE)
            return
