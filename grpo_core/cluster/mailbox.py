"""What a run's workers and its process tell each other: an actor that outlives the workers.

Each time that Ray starts the workers they begin a new life, which has a number. What an earlier
life still says is dropped, so nothing is recorded twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.training.control import Command, Start
from grpo_core.training.distant import MAX_UNSENT, Message

# The worker 0 obeys everything, the others only these.
FOR_ALL = ("stop",)


@dataclass(frozen=True, slots=True)
class Began:
    """The workers are there and ask from where to train."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone; Ray ends the others and starts all again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a command: why it was refused, or ""."""

    question: int
    refusal: str


Letter = tuple[int, Message | Began | Lost | Answered]  # of which life


class Mailbox:
    """Letters to the run's process, in order and at most MAX_UNSENT; commands to the workers.

    Every method may be called at any time, by any number of callers; those that wait have a limit
    or wait for room.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._life = 0
        self._start: Start | None = None
        self._letters: deque[Letter] = deque()
        self._commands: list[tuple[Command, int | None]] = []

    # ---- for the workers -------------------------------------------------------------------------

    async def begin(self) -> int:
        """The number of a new life. Letters of the one before are dropped."""
        async with self._changed:
            self._life += 1
            self._start = None
            self._commands.clear()
            self._letters = deque(letter for letter in self._letters if isinstance(letter[1], Lost))
            self._letters.append((self._life, Began()))
            self._changed.notify_all()
            return self._life

    async def started(self, life: int) -> Start | None:
        """From where to train, as soon as the run's process says it; None: the life is over."""
        await self._wait(lambda: self._life != life or self._start is not None, None)
        return self._start if self._life == life else None

    async def put(self, life: int, messages: Sequence[Message | Answered]) -> bool:
        """Take letters in, as soon as there is room. False: the life is over."""
        await self._wait(lambda: self._life != life or len(self._letters) < MAX_UNSENT, None)
        async with self._changed:
            if self._life != life:
                return False
            self._letters.extend((life, message) for message in messages)
            self._changed.notify_all()
            return True

    async def commands(
        self, life: int, after: int, first: bool, seconds: float
    ) -> tuple[int, list[tuple[Command, int | None]]] | None:
        """Commands after number `after`, with the number of the last; waits for some.

        first: for worker 0. Each command has the number of its question, if it is one. None: the
        life is over.
        """
        await self._wait(lambda: self._life != life or len(self._commands) > after, seconds)
        if self._life != life:
            return None
        new = self._commands[after:]
        wanted = [c for c in new if first or c[0][0] in FOR_ALL]
        return after + len(new), wanted

    # ---- for the run's process, and Ray ----------------------------------------------------------

    async def take(self, seconds: float) -> list[Letter]:
        """All letters; waits for some."""
        await self._wait(lambda: bool(self._letters), seconds)
        async with self._changed:
            letters = list(self._letters)
            self._letters.clear()
            self._changed.notify_all()
            return letters

    async def start(self, life: int, start: Start) -> None:
        """Let the workers of this life train."""
        async with self._changed:
            if self._life == life:
                self._start = start
                self._changed.notify_all()

    async def tell(
        self, command: Command, life: int | None = None, question: int | None = None
    ) -> None:
        """A command for the workers. life: dropped if they have another."""
        async with self._changed:
            if life in (None, self._life):
                self._commands.append((command, question))
                self._changed.notify_all()

    async def lost(self, reason: str) -> None:
        """A worker has died, or failed for a reason that another start may not have."""
        async with self._changed:
            self._letters.append((self._life, Lost(reason)))
            self._changed.notify_all()

    async def _wait(self, until: Callable[[], Any], seconds: float | None) -> bool:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(until), seconds)
            except TimeoutError:
                return False
            return True
