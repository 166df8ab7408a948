"""Stop ends every run: a trainer that does not end by itself is ended by force."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from grpo_core.config import RunConfig
from grpo_core.training.control import RunControl
from grpo_core.types import Checkpointed, Event, ModelLoaded, StepCompleted

GRACE_SECONDS = 9.0  # from Stop, or a signal, to the end of a trainer that need not save
SAVED_BYTES = 12  # of a trained parameter: weight and two moments, in 32 bits
SLOW_DISK = 100e6  # bytes per second, for the first save of a run
POLL_SECONDS = 0.1
LATE = (
    "The trainer did not stop in time and was killed. What was recorded is kept. "
    "Press Resume to continue from its last checkpoint."
)


class Patience:
    """Seconds that a trainer may take from Stop to its end; `note` learns from its events.

        GRACE_SECONDS + its longest save + its longest update

    A stop waits for the end of an update, and saves. Before the first save, its time is estimated
    from the model's size.
    """

    def __init__(self, config: RunConfig, saving_seconds: float | None) -> None:
        """saving_seconds: of an earlier save of this run; None: not known."""
        self._saves = bool(config.train.checkpoint_every)
        self._saving = saving_seconds
        self._first_saving = self._update = 0.0

    def note(self, event: Event) -> None:
        match event:
            case ModelLoaded(env):
                self._first_saving = _estimated_saving(env)
            case Checkpointed(seconds=float(seconds)):
                self._saving = max(self._saving or 0.0, seconds)
            case StepCompleted(metrics=metrics):
                self._update = max(self._update, metrics.update_seconds or 0.0)

    @property
    def seconds(self) -> float:
        saving = self._first_saving if self._saving is None else self._saving
        return GRACE_SECONDS + self._update + (saving if self._saves else 0.0)


def _estimated_saving(env: Mapping[str, Any]) -> float:
    parameters = env.get("trained_parameters")
    return parameters * SAVED_BYTES / SLOW_DISK if isinstance(parameters, int) else 0.0


@contextmanager
def killed_if_late(
    control: RunControl, patience: Patience, kill: Callable[[], None]
) -> Iterator[threading.Event]:
    """Call `kill` from a thread if the block goes on for too long after a stop was requested.

    Yields an event that is set before `kill` is called.
    """
    over, late = threading.Event(), threading.Event()

    def watch() -> None:
        with control.changed:
            control.changed.wait_for(lambda: control.stop_requested or over.is_set())
        asked = time.monotonic()
        while not over.wait(POLL_SECONDS):
            if time.monotonic() - asked > patience.seconds:
                late.set()
                kill()
                return

    watcher = threading.Thread(target=watch, name="stop in time", daemon=True)
    watcher.start()
    try:
        yield late
    finally:
        over.set()
        with control.changed:
            control.changed.notify_all()
        watcher.join()
