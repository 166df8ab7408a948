"""A time limit for everything that one request of a visitor does.

The page sets it; long work asks how much is left. A run sets none.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

SCORING_SECONDS = 60.0  # for the scores of one request; a judge may need most of it
TYPING_SECONDS = 4.0  # for scores that are shown while a person types
TIME_IS_UP = "the time of this request was used up"
_end: ContextVar[float] = ContextVar("end", default=math.inf)  # by time.monotonic()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """What runs inside has this much time in total. A limit inside another cannot extend it."""
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)


def seconds_left() -> float:
    """How much time is left; 0 when it is over, infinite without a limit."""
    return max(0.0, _end.get() - time.monotonic())
