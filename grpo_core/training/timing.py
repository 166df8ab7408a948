"""The timer of a run. It does not count pauses."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from grpo_core.types import Evaluated, Event, Paused, Phase, PhaseStarted, Resumed


class RunTimer:
    """Passes events on to `emit`, and measures evaluation and writing time on the way."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._evaluating_since: float | None = None
        self._evaluation = self._writing = 0.0  # seconds since the last lap()
        self._paused_seconds = 0.0
        self._paused_since: float | None = None
        self._paused_from_outside = False

    def now(self) -> float:
        """Seconds on a clock that stops from Paused to Resumed; only differences have a meaning."""
        now = perf_counter() if self._paused_since is None else self._paused_since
        return now - self._paused_seconds

    def pause(self) -> None:
        """Stop the clock: another process holds the run, and calls resume() when that is over."""
        if self._paused_since is None:
            self._paused_from_outside, self._paused_since = True, perf_counter()

    def resume(self) -> None:
        """End what pause() began."""
        if self._paused_from_outside:
            self._continue()
        self._paused_from_outside = False

    def _continue(self) -> None:
        if self._paused_since is not None:
            self._paused_seconds += perf_counter() - self._paused_since
            self._paused_since = None

    def __call__(self, event: Event) -> None:
        started = self.now()
        if isinstance(event, Resumed):
            self._continue()
        if isinstance(event, PhaseStarted):
            self._evaluating_since = started if event.phase is Phase.EVALUATING else None
        elif isinstance(event, Evaluated) and self._evaluating_since is not None:
            self._evaluation += started - self._evaluating_since
            self._evaluating_since = None
        self._emit(event)
        self._writing += self.now() - started
        if isinstance(event, Paused) and self._paused_since is None:
            # Only the first reason starts a pause: a second one arrives while the clock stands.
            self._paused_since = perf_counter()

    def lap(self) -> dict[str, Any]:
        """Two metrics of a step: seconds since the step before, with that step's own record."""
        lap = {"evaluation_seconds": self._evaluation, "writing_seconds": self._writing}
        self._evaluation = self._writing = 0.0
        return lap
