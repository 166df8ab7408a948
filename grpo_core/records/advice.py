"""The advisor's notices about a run of another trainer, while it is live and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable

from grpo_core.analysis.advisor import keep_advice
from grpo_core.store import Store

SECONDS = 5.0  # between two looks at the rows, at least
SHARE = 0.05  # of the time may go into them; a long run takes longer to read


class Advice:
    """Keeps the stored notices of one run up to date."""

    def __init__(
        self, store: Store, run_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._run_id, self._clock = store, run_id, clock
        self._due_at, self._is_old = 0.0, False

    def look(self, is_news: bool = False) -> None:
        """Write the notices if rows are new, unless the last look was just now."""
        self._is_old |= is_news
        if self._is_old and self._clock() >= self._due_at:
            self.last_look()

    def last_look(self) -> None:
        """Read the rows and write the notices."""
        started = self._clock()
        keep_advice(self._store, self._run_id)
        now = self._clock()
        self._due_at, self._is_old = now + max(SECONDS, (now - started) / SHARE), False
