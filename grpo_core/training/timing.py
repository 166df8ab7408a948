"""The time of a run: where it goes besides its steps' own phases, and that none passes while it waits for a person."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from grpo_core.types import Evaluated, Event, Paused, Phase, PhaseStarted, Resumed


class Clock:
    """Stands between the trainer and its listener, and measures both: hand it on as `emit`."""

    def __init__(self, emit: Callable[[Event], None]):
        self._emit = emit
        self._evaluating_since: float | None = None
        self._evaluation = self._writing = 0.0
        self._waited = 0.0
        self._waits_since: float | None = None
        self._held = False

    def now(self) -> float:
        """Seconds on a clock that stands still from Paused to Resumed: only differences mean something."""
        return (perf_counter() if self._waits_since is None else self._waits_since) - self._waited

    def stand_still(self) -> None:
        """The run is held by somebody else, who says when that is over."""
        if self._waits_since is None:
            self._held, self._waits_since = True, perf_counter()

    def go_on(self) -> None:
        if self._held and self._waits_since is not None:
            self._waited, self._waits_since = (
                self._waited + perf_counter() - self._waits_since,
                None,
            )
        self._held = False

    def __call__(self, event: Event) -> None:
        started = self.now()
        if isinstance(event, Resumed) and self._waits_since is not None:
            self._waited, self._waits_since = (
                self._waited + perf_counter() - self._waits_since,
                None,
            )
        if isinstance(event, PhaseStarted):
            self._evaluating_since = started if event.phase is Phase.EVALUATING else None
        elif isinstance(event, Evaluated) and self._evaluating_since is not None:
            self._evaluation += started - self._evaluating_since
            self._evaluating_since = None
        self._emit(event)
        self._writing += self.now() - started
        if (
            isinstance(event, Paused) and self._waits_since is None
        ):  # a second reason does not begin a second wait
            self._waits_since = perf_counter()

    def lap(self) -> dict[str, float]:
        """The two metrics of a step: seconds since the step before, its own record included, this one's not."""
        told = {"evaluation_seconds": self._evaluation, "writing_seconds": self._writing}
        self._evaluation = self._writing = 0.0
        return told
