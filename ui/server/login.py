"""The server's login: one user and password, compared in constant time, and slow to guess."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256

from starlette.exceptions import HTTPException

from ui.server.visitor import UNKNOWN, request_state

FREE = 5  # wrong guesses from one address that cost nothing: people mistype
MAX_SECONDS = 8.0  # between two guesses of one address
MAX_WAITING = 4  # guesses of one address that wait for their turn
MEMORY_SECONDS = 900.0  # after which a wrong guess is forgotten
MAX_ADDRESSES = 10_000
# From so many wrong guesses in that time on, from whatever addresses, a new address also waits.
MANY = 100
MANY_SECONDS = 1.0


class TooManyGuesses(Exception):
    """An address has too many guesses that wait."""


@dataclass(slots=True)
class _Guesser:
    wrong: int = 0
    next_at: float = 0.0  # when its next guess is looked at
    last_at: float = 0.0  # of its last guess


class Guesses:
    """How long a guess of the password waits before it is looked at.

    Nobody is locked out. An address waits longer after each wrong guess, up to MAX_SECONDS, so it
    makes at most some ten thousand guesses a day.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()
        self._waiting: Counter[str] = Counter()
        self._wrong_at: deque[float] = deque(maxlen=MANY)
        self._right: OrderedDict[str, None] = OrderedDict()  # addresses that knew the password

    async def turn(
        self, address: str, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        """Wait until a guess of this address may be looked at. Raises TooManyGuesses."""
        if self._waiting[address] >= MAX_WAITING:
            raise TooManyGuesses
        self._waiting[address] += 1
        try:
            if (seconds := self.seconds(address)) > 0:
                await sleep(seconds)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    def seconds(self, address: str) -> float:
        """Reserve the next guess of this address; returns in how many seconds it is looked at."""
        now = self._clock()
        guesser = self._guesser(address, now)
        at = max(now, guesser.next_at)
        if guesser.wrong >= FREE:
            guesser.next_at = at + min(MAX_SECONDS, 0.5 * 2 ** (guesser.wrong - FREE))
            at = guesser.next_at
        is_attacked = len(self._wrong_at) == MANY and now - self._wrong_at[0] < MEMORY_SECONDS
        if is_attacked and address not in self._right:
            at += MANY_SECONDS
        return at - now

    def note(self, address: str, right: bool) -> None:
        """Remember whether a guess of this address was right."""
        now = self._clock()
        if right:
            self._guessers.pop(address, None)
            self._right[address] = None
            if len(self._right) > MAX_ADDRESSES:
                self._right.popitem(last=False)
            return
        self._guesser(address, now).wrong += 1
        self._wrong_at.append(now)

    def _guesser(self, address: str, now: float) -> _Guesser:
        guesser = self._guessers.setdefault(address, _Guesser())
        if now - guesser.last_at > MEMORY_SECONDS:
            guesser.wrong = 0
        guesser.last_at = now
        self._guessers.move_to_end(address)
        if len(self._guessers) > MAX_ADDRESSES:
            self._guessers.popitem(last=False)
        return guesser


class Login:
    """Who knows the server's user and password."""

    def __init__(self, user: str, password: str):
        self._secret = _digest(user, password)
        self._guesses = Guesses()

    async def check(self, user: str, password: str) -> bool:
        """Whether both are right, for Gradio's login form."""
        current = request_state.get()
        try:
            return await self._knows(user, password, current.address if current else UNKNOWN)
        except TooManyGuesses:
            headers = {"Retry-After": str(int(MAX_SECONDS))}
            text = "Too many wrong passwords came from here. Try again in some seconds."
            raise HTTPException(429, text, headers) from None

    async def allows(self, authorization: str, address: str) -> bool:
        """Whether a header of HTTP Basic authorization holds both. Raises TooManyGuesses."""
        scheme, _, encoded = authorization.partition(" ")
        try:
            text = base64.b64decode(encoded, validate=True).decode()
        except ValueError:
            return False
        user, _, password = text.partition(":")
        return scheme.lower() == "basic" and await self._knows(user, password, address)

    async def _knows(self, user: str, password: str, address: str) -> bool:
        await self._guesses.turn(address)
        # Digests are of equal length, so the time of the comparison tells nothing.
        right = hmac.compare_digest(_digest(user, password), self._secret)
        self._guesses.note(address, right)
        return right


def _digest(user: str, password: str) -> bytes:
    parts = (text.encode("utf-8", "replace") for text in (user, password))
    return sha256(b"\0".join(sha256(part).digest() for part in parts)).digest()
