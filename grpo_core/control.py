"""RunControl: everything that a person can say to a running run."""

from __future__ import annotations

import threading

from grpo_core.errors import StopRequested


class RunControl:
    """The one object through which a run is reached from outside. Safe to use from any thread, any number of times.

    The trainer calls `breathe()` at its named points (before each token, micro-batch and phase); nothing else reaches into it.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask the run to end at its next breath. Everything recorded is kept."""
        self._stop.set()

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def breathe(self) -> None:
        """Raises StopRequested if somebody asked the run to stop."""
        if self._stop.is_set():
            raise StopRequested
