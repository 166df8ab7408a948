"""Training in another process: what it says, and how it obeys the commands that it is sent."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from traceback import format_exc
from typing import Protocol

from grpo_core.errors import StopRequested, StudioError
from grpo_core.training.control import Command, Emit, RunControl
from grpo_core.training.timing import RunTimer
from grpo_core.types import Checkpointed, Event, Paused

MAX_UNSENT = 32  # events, a few steps; the trainer then waits, so that no event is lost
KEPT = "What was recorded is kept: press Resume to continue from the last checkpoint."

log = logging.getLogger("grpo_studio")


@dataclass(frozen=True, slots=True)
class Ended:
    """The last message of the trainer. how: "finished", "stopped" or "failed"."""

    how: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Logged:
    """A log message of the trainer, for the run's log in the other process."""

    level: int
    text: str


Message = Event | Ended | Logged


# ---- where the trainer is ----------------------------------------------------------------------


# What a trainer's process does once it has said how the run ended: it may end the process.
LAST: list[Callable[[], None]] = []


class Outbox:
    """What the trainer says, until another thread sends it."""

    def __init__(self) -> None:
        self.unsent: queue.Queue[Message] = queue.Queue(MAX_UNSENT)
        self.recorded = threading.Semaphore(0)  # released for each checkpoint on record
        self.is_over = False  # the last message is among the unsent, or sent

    def emit(self, event: Event) -> None:
        """Say an event; wait while too many are unsent, and until a checkpoint is on record."""
        self.unsent.put(event)
        if isinstance(event, Checkpointed):
            # The trainer deletes older checkpoints next. The record must name the new one first.
            self.recorded.acquire()

    def say_log(self, prefix: str = "") -> logging.Handler:
        """Say the log of this process too. Returns the handler that does so."""
        handler = _LogSender(self, prefix)
        log.addHandler(handler)
        log.propagate = False
        return handler


class _LogSender(logging.Handler):
    def __init__(self, outbox: Outbox, prefix: str):
        super().__init__()
        self._outbox, self._prefix = outbox, prefix

    def emit(self, record: logging.LogRecord) -> None:
        self._outbox.unsent.put(Logged(record.levelno, self._prefix + self.format(record)))


def ended(work: Callable[[], None], but: type[Exception] | tuple[()] = ()) -> Ended:
    """How the work ended. but: an exception that is raised on."""
    try:
        work()
        return Ended("finished")
    except but:
        raise
    except StopRequested as request:
        return Ended("stopped", str(request))
    except StudioError as problem:
        return Ended("failed", str(problem))
    except BaseException as problem:  # the other process records it
        return Ended("failed", f"{type(problem).__name__}: {problem}\n\n{format_exc()}")


def obey(command: Command, control: RunControl, outbox: Outbox) -> str:
    """Do what a command asks. Returns why it was refused, or ""."""
    name, values = command
    if name == "recorded":
        outbox.recorded.release()
    elif name == "held":
        control.points.timer.pause()
    elif name == "released":
        control.points.timer.resume()
    else:
        try:
            getattr(control, name)(*values)
        except StudioError as problem:
            return str(problem)
    return ""


# ---- where the run is recorded -----------------------------------------------------------------


class Delivers(Protocol):
    """Sends commands to the trainer."""

    def deliver(self, command: Command) -> None: ...


class DistantTimer(RunTimer):
    """While the record makes the run wait, the timer of the trainer stands still too."""

    def __init__(self, emit: Emit, send: Delivers) -> None:
        super().__init__(self._emit_pause)
        self._record, self._send = emit, send

    def _emit_pause(self, event: Event) -> None:
        """A full disk pauses the run in this process."""
        self._record(event)
        self._send.deliver(("held" if isinstance(event, Paused) else "released", ()))

    def pause(self) -> None:
        self._send.deliver(("held", ()))

    def resume(self) -> None:
        self._send.deliver(("released", ()))
