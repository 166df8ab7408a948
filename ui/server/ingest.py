"""POST /studio/ingest: what trainers elsewhere record, for a server with --ingest-token.

A parcel of JSON, gzipped or not, as docs/records.md describes it. Its own token is enough, also on
a server with a password. Sending a parcel twice changes nothing.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from grpo_core.errors import InvalidConfig, StoreError, StoreFull, StudioError
from grpo_core.records.intake import Intake
from grpo_core.records.parcels import MAX_BYTES, MAX_PACKED, TooLarge, read, unzip
from grpo_core.store import Store
from ui.server.bodies import Bodies
from ui.server.guard import Refusal, read_headers, respond
from ui.server.lanes import Busy, Lane
from ui.server.login import MAX_SECONDS, Guesses, TooManyGuesses
from ui.server.visitor import address

INGEST = "/studio/ingest"
MIN_TOKEN = 16  # characters
LOOK_SECONDS = 5.0  # between two looks for trainers that fell silent
# Of one address; a trainer sends two or three parcels a step.
BURST, PER_SECOND = 500.0, 100.0
MAX_ADDRESSES = 10_000
MAX_BUFFERED = 64 << 20
# A parcel of 32 MiB takes some hundred MiB while it is read: one at a time.
TURNS = {"total": 1, "each": 1, "waiting": 4, "seconds": 8.0}
SLOW_DOWN = 429, "Too many parcels at once. Send this one again.", 2


class Desk:
    """Checks the token and writes what is sent into the store."""

    def __init__(self, store: Store, token: str, check_room: Callable[[], object] = lambda: None):
        """check_room: raises StudioError while no more is kept. Raises StudioError itself."""
        if len(token) < MIN_TOKEN or not (token.isascii() and token.isprintable()):
            raise StudioError(
                f"--ingest-token has {len(token)} characters: it needs {MIN_TOKEN} or more, all "
                "printable ASCII. This makes one: "
                'python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        self._digest = sha256(token.encode()).digest()
        self._intake, self._check_room = Intake(store), check_room
        self._watching: threading.Thread | None = None
        self._closed = threading.Event()

    def knows(self, authorization: str) -> bool:
        """Whether the header holds the token; digests, so the time of the answer tells nothing."""
        scheme, _, token = authorization.partition(" ")
        given = sha256(token.strip().encode("utf-8", "replace")).digest()
        return hmac.compare_digest(given, self._digest) and scheme.lower() == "bearer"

    def take(self, body: bytes, is_zipped: bool) -> dict[str, Any]:
        """Write a parcel. Raises StudioError."""
        self._check_room()
        taken = self._intake.take(read(unzip(body) if is_zipped else body))
        if self._watching is None:
            self._watching = threading.Thread(target=self._watch, name="ingest", daemon=True)
            self._watching.start()
        return {"run_id": taken.run_id, "written": taken.written, "known": taken.known}

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self._intake.interrupt_silent()

    def close(self) -> None:
        self._closed.set()
        self._intake.close()


class Ingest:
    """ASGI middleware behind the Guard and before the login. Answers everything in JSON."""

    def __init__(self, app: ASGIApp, desk: Desk | None):
        """desk: None: there is nothing at this address."""
        self.app, self._desk = app, desk
        self._guesses, self._lane = Guesses(), Lane(**TURNS)
        self._bodies = Bodies(MAX_BUFFERED, SLOW_DOWN)
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != INGEST:
            await self.app(scope, receive, send)
            return
        try:
            status, content, after = 200, await self._answer(scope, receive), 0
        except Refusal as refusal:
            status, content, after = refusal.status, {"error": refusal.text}, refusal.after
        except InvalidConfig as error:
            problems = [{"field": p.field, "problem": p.problem} for p in error.problems]
            status, content, after = 400, {"error": str(error)[:2000], "problems": problems}, 0
        except TooLarge as error:
            status, content, after = 413, {"error": str(error)}, 0
        except StoreError as error:
            status = 507 if isinstance(error, StoreFull) else 503
            content, after = {"error": str(error)}, 5
        except StudioError as error:  # the disk has no room for more
            status, content, after = 507, {"error": str(error)}, 30
        body = orjson.dumps(content, default=str)
        await respond(send, status, body, b"application/json", after)

    async def _answer(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Raises Refusal and StudioError."""
        desk, sender = self._desk, address(scope)
        if desk is None:
            raise Refusal(404, "There is nothing at this address. Start app.py --ingest-token.")
        headers = read_headers(scope)
        await self._check_token(desk, headers.get("authorization", ""), sender)
        self._check_rate(sender)
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding not in ("gzip", "identity"):
            raise Refusal(415, "Content-Encoding must be gzip or identity.")
        is_zipped = encoding == "gzip"
        max_bytes = MAX_PACKED if is_zipped else MAX_BYTES
        body = await self._bodies.read(scope, receive, max_bytes)
        try:
            async with self._lane.turn(sender):
                return await run_in_threadpool(desk.take, body, is_zipped)
        except Busy:
            raise Refusal(*SLOW_DOWN) from None

    async def _check_token(self, desk: Desk, authorization: str, sender: str) -> None:
        """Raises Refusal. Who knows the token never waits for those who guess."""
        if desk.knows(authorization):
            return
        try:
            await self._guesses.turn(sender)
        except TooManyGuesses:
            text = "Too many wrong tokens came from here."
            raise Refusal(429, text, int(MAX_SECONDS)) from None
        self._guesses.note(sender, right=False)
        raise Refusal(401, "Send Authorization: Bearer TOKEN with the server's --ingest-token.")

    def _check_rate(self, sender: str) -> None:
        """Raises Refusal above PER_SECOND, after a burst."""
        now = time.monotonic()
        left, at = self._rates.get(sender, (BURST, now))
        left = min(BURST, left + PER_SECOND * (now - at)) - 1
        if left < 0:
            raise Refusal(*SLOW_DOWN)
        self._rates[sender] = left, now
        self._rates.move_to_end(sender)
        if len(self._rates) > MAX_ADDRESSES:
            self._rates.popitem(last=False)
