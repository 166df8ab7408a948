"""Where a run's time goes besides its steps' own phases: evaluation, and whoever listens to its events."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from grpo_core.types import Evaluated, Event, Phase, PhaseStarted


class Clock:
    """Stands between the trainer and its listener, and measures both: hand it on as `emit`."""

    def __init__(self, emit: Callable[[Event], None]):
        self._emit = emit
        self._evaluating_since: float | None = None
        self._evaluation = self._writing = 0.0

    def __call__(self, event: Event) -> None:
        started = perf_counter()
        if isinstance(event, PhaseStarted):
            self._evaluating_since = started if event.phase is Phase.EVALUATING else None
        elif isinstance(event, Evaluated) and self._evaluating_since is not None:
            self._evaluation += started - self._evaluating_since
            self._evaluating_since = None
        self._emit(event)
        self._writing += perf_counter() - started

    def lap(self) -> dict[str, float]:
        """The two metrics of a step: seconds since the step before, its own record included, this one's not."""
        told = {"evaluation_seconds": self._evaluation, "writing_seconds": self._writing}
        self._evaluation = self._writing = 0.0
        return told
