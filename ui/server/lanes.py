"""Shares what the server does at once among its visitors, so none waits for another's flood."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Busy(Exception):
    """A visitor has too many requests that wait, or one of them waited too long."""


class Lane:
    """At most `total` requests at once, and at most `each` of one visitor. The others wait.

    Free places go to the visitors in turn. Belongs to one event loop.
    """

    def __init__(self, total: int, each: int, waiting: int, seconds: float):
        """waiting: how many requests of one visitor may wait. seconds: how long each of them."""
        self._total, self._each, self._max_waiting, self._seconds = total, each, waiting, seconds
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, visitor: str) -> AsyncIterator[None]:
        """Wait for a place and hold it. Raises Busy."""
        await self._enter(visitor)
        try:
            yield
        finally:
            self._leave(visitor)

    async def _enter(self, visitor: str) -> None:
        line = self._waiting.setdefault(visitor, deque())
        if len(line) >= self._max_waiting:
            raise Busy
        place = asyncio.get_running_loop().create_future()
        line.append(place)
        self._call_next()
        try:
            await asyncio.wait_for(asyncio.shield(place), self._seconds)
        except BaseException as error:
            if place.done():  # it was called in the same moment
                self._leave(visitor)
            else:
                self._forget(visitor, place)
            if isinstance(error, TimeoutError):
                raise Busy from None
            raise

    def _leave(self, visitor: str) -> None:
        self._running[visitor] -= 1
        if not self._running[visitor]:
            del self._running[visitor]
        self._call_next()

    def _call_next(self) -> None:
        while self._running.total() < self._total:
            ready = (v for v in self._waiting if self._running[v] < self._each)
            visitor = next(ready, None)
            if visitor is None:
                return
            place = self._waiting[visitor].popleft()
            self._waiting.move_to_end(visitor)  # the others come first the next time
            if not self._waiting[visitor]:
                del self._waiting[visitor]
            self._running[visitor] += 1
            place.set_result(None)

    def _forget(self, visitor: str, place: asyncio.Future[None]) -> None:
        line = self._waiting.get(visitor)
        if line is not None and place in line:
            line.remove(place)
            if not line:
                del self._waiting[visitor]
