"""ASGI middleware that limits what one visitor can use of the server: bytes, time, places.

Behind the Guard and in front of Gradio, which reads bodies of any size and parses anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.server.calls import read_call
from ui.server.guard import Refusal, read_headers, refuse
from ui.server.lanes import Busy, Lane
from ui.server.queued import PATHS, QueuedCalls
from ui.server.visitor import Asked, address, asked, signed_in

MIB = 1 << 20
MAX_BYTES = 2_000_000  # of a request that is no upload
MAX_BUFFERED = 64 * MIB  # of all requests whose bodies are being read
MAX_UPLOAD_BYTES = 201 * MIB  # Gradio refuses a file above 200 MB
MAX_PARTS = 17  # of a form that is uploaded, so at most 16 files
UPLOADED_BYTES = 1024 * MIB  # that one visitor may upload in UPLOADED_SECONDS
UPLOADED_SECONDS = 3600.0
MAX_UPLOADS = 3  # of one visitor at once
# Kind, and how many requests of one visitor and of all are open at once.
STREAM = "stream", 24, 200  # server-sent events
TOOLS = "tool", 4, 12  # calls of MCP, which hold a thread
# A body must come at this rate, after a grace time. A person on a slow line is above it.
RECEIVE_SECONDS = 10.0
RECEIVE_RATE = 16 << 10
# Gradio and Starlette each answer in 40 threads.
LANES = {
    "quick": {"total": 24, "each": 8, "waiting": 64, "seconds": 20.0},
    "page": {"total": 8, "each": 2, "waiting": 48, "seconds": 20.0},  # 50 ms of computing each
    "slow": {"total": 6, "each": 2, "waiting": 32, "seconds": 60.0},
}
PAGES = ("", "/config", "/info", "/openapi.json")
# After that time the caller gets an answer, and the work keeps its place until it ends.
SHOW_SECONDS = 20.0  # refresh.js waits as long
CALL_SECONDS = 900.0  # preflight and export of a large model
PATIENCE_SECONDS = 1.0  # before a visitor is told of too many requests
SLOW_BODY = 408, "The request came too slowly."
TOO_LARGE = 413, "A request may have at most {:,} bytes."
TOO_MANY = 429, "Too many requests of yours are waiting here. Try again in a moment.", 5
STREAMS = ("/queue/data", "/heartbeat/", "/upload_progress", "/call/")
LOGIN = "/login"

log = logging.getLogger("grpo_studio")


class Traffic:
    """Reads bodies within limits, lets visitors wait for their turn, and bounds every answer."""

    def __init__(self, app: ASGIApp, is_slow: Callable[[Scope, dict[str, Any]], bool]):
        """is_slow(scope, JSON): whether a request may take long."""
        self.app = app
        self._is_slow = is_slow
        self._lanes = {name: Lane(**limits) for name, limits in LANES.items()}
        self._places: Counter[tuple[str, str]] = Counter()  # (kind, address) -> open requests
        self._buffered = 0
        self._uploads: OrderedDict[str, deque[tuple[float, int]]] = OrderedDict()
        self._queued = QueuedCalls()
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        current = Asked(address(scope))
        token = asked.set(current)
        answer = _Answer(send, current)
        try:
            await self._handle(scope, receive, answer)
        except Refusal as refusal:
            if refusal.status == 429:  # who asks again at once is slowed down
                await asyncio.sleep(PATIENCE_SECONDS)
            if not answer.started:
                await refuse(send, refusal)
        except RuntimeError as error:
            # Gradio refuses an unknown session after its stream has begun. Not worth a traceback,
            # which anybody could make the log grow with.
            if not isinstance(error.__cause__, HTTPException):
                raise
            await answer({"type": "http.response.body", "body": b""})
        finally:
            asked.reset(token)

    async def _handle(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Raises Refusal."""
        visitor = answer.asked.address
        path = scope["path"].removeprefix("/gradio_api").rstrip("/")
        method, is_tool = scope["method"], path.startswith("/mcp")
        is_stream = method == "GET" and path.startswith(STREAMS)
        is_private = is_stream or (method == "POST" and path != LOGIN)
        if is_private and not (is_tool or signed_in(scope)):
            raise Refusal(401, "Sign in first.")
        if method == "POST" and path == "/upload":
            async with self._place("upload", visitor, MAX_UPLOADS):
                await self._upload(scope, receive, answer, visitor)
            return
        body = await self._read(scope, receive)
        lane = "page" if path in PAGES else "quick"
        if method == "POST" and path != LOGIN:
            content = read_call(scope, body)
            if path.startswith(PATHS):
                self._queued.admit(visitor, content, scope["app"].get_blocks()._queue)
            body = orjson.dumps(content)  # so that Gradio opens what was checked
            lane = "slow" if self._is_slow(scope, content) else "quick"
        if is_tool or is_stream:
            kind, each, total = TOOLS if method == "POST" else STREAM
            async with self._place(kind, visitor, each, total):
                await self.app(scope, _Replay(body, receive), answer)
            return
        limit = SHOW_SECONDS if path == "/studio/show" else CALL_SECONDS
        await self._in_turn(self._lanes[lane], limit, scope, _Replay(body, receive), answer)

    # ---- places ------------------------------------------------------------------------------

    async def _in_turn(
        self, lane: Lane, limit: float, scope: Scope, receive: _Replay, answer: _Answer
    ) -> None:
        """Answer when the visitor's turn comes, within `limit` seconds. Raises Refusal.

        A request whose sender has gone before that is dropped.
        """
        has_turn = False

        async def work() -> None:
            nonlocal has_turn
            async with lane.turn(answer.asked.address):
                has_turn = True
                finished = asyncio.ensure_future(self.app(scope, receive, answer))
                begun = asyncio.ensure_future(answer.begun.wait())
                # Sending needs no thread, so a slow reader holds no place.
                await asyncio.wait({finished, begun}, return_when=asyncio.FIRST_COMPLETED)
                begun.cancel()
            await finished

        task = asyncio.ensure_future(work())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        receive.gone.add_done_callback(lambda _: has_turn or task.cancel())
        begun = asyncio.ensure_future(answer.begun.wait())
        await asyncio.wait({task, begun}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if not (task.done() or answer.started):
            answer.closed = True
            if not has_turn:
                task.cancel()
                raise Refusal(*TOO_MANY)
            task.add_done_callback(_log_failure)
            raise Refusal(503, f"This took longer than {limit:g} s. Ask for less.")
        try:
            await task
        except Busy:
            raise Refusal(*TOO_MANY) from None
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
        finally:
            receive.gone.cancel()

    @asynccontextmanager
    async def _place(
        self, kind: str, visitor: str, each: int, total: int | None = None
    ) -> AsyncIterator[None]:
        """Hold one of a visitor's places. Raises Refusal."""
        taken = sum(n for (other, _), n in self._places.items() if other == kind)
        if self._places[kind, visitor] >= each or (total is not None and taken >= total):
            raise Refusal(*TOO_MANY)
        self._places[kind, visitor] += 1
        try:
            yield
        finally:
            self._places[kind, visitor] -= 1
            if not self._places[kind, visitor]:
                del self._places[kind, visitor]

    # ---- bodies ------------------------------------------------------------------------------

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body of a request that is no upload. Raises Refusal."""
        too_large = Refusal(TOO_LARGE[0], TOO_LARGE[1].format(MAX_BYTES))
        if _announced(scope) > MAX_BYTES:
            raise too_large
        body = bytearray()
        try:
            async for part in _parts(receive):
                body += part
                self._buffered += len(part)
                if len(body) > MAX_BYTES:
                    raise too_large
                if self._buffered > MAX_BUFFERED:
                    raise Refusal(*TOO_MANY)
        finally:
            self._buffered -= len(body)
        return bytes(body)

    async def _upload(self, scope: Scope, receive: Receive, answer: _Answer, visitor: str) -> None:
        """Pass an upload on while it comes. Raises Refusal."""
        too_large = Refusal(TOO_LARGE[0], TOO_LARGE[1].format(MAX_UPLOAD_BYTES))
        if _announced(scope) > MAX_UPLOAD_BYTES:
            raise too_large
        boundary, num_bytes, num_parts, tail = _boundary(scope), 0, 0, b""
        parts = _parts(receive)
        refusal: Refusal | None = None

        async def counted() -> Message:
            nonlocal num_bytes, num_parts, tail, refusal
            try:
                part = await anext(parts, b"")
                num_bytes += len(part)
                seen = tail + part
                num_parts += seen.count(boundary)
                tail = seen[len(seen) - len(boundary) + 1 :]
                if num_bytes > MAX_UPLOAD_BYTES:
                    raise too_large
                if num_parts > MAX_PARTS:
                    raise Refusal(413, f"Upload at most {MAX_PARTS - 1} files at once.")
                self._count_upload(visitor, len(part))
            except Refusal as raised:
                refusal = raised
                raise
            return {"type": "http.request", "body": part, "more_body": bool(part)}

        try:
            await self.app(scope, counted, answer)
        except Exception as error:
            if refusal is not None:
                raise refusal from None
            if answer.started:
                raise
            log.info("an upload was refused: %r", error)
            raise Refusal(400, "This is no form with files.") from None

    def _count_upload(self, visitor: str, num_bytes: int) -> None:
        """Raises Refusal beyond what one visitor may upload in UPLOADED_SECONDS."""
        now = time.monotonic()
        uploads = self._uploads.setdefault(visitor, deque())
        self._uploads.move_to_end(visitor)
        while uploads and now - uploads[0][0] > UPLOADED_SECONDS:
            uploads.popleft()
        if uploads and now - uploads[-1][0] < 1.0:  # one entry a second, not one a block
            num_bytes += uploads.pop()[1]
        uploads.append((now, num_bytes))
        while len(self._uploads) > 10_000:
            self._uploads.popitem(last=False)
        if sum(n for _, n in uploads) > UPLOADED_BYTES:
            text = f"A visitor may upload {UPLOADED_BYTES // MIB:,} MiB an hour. Try again later."
            raise Refusal(429, text, 600)


class _Answer:
    """The `send` of a request: knows when the answer begins, and corrects its status."""

    def __init__(self, send: Send, asked: Asked):
        self.asked = asked
        self.started = self.closed = False
        self.begun = asyncio.Event()
        self._send = send

    async def __call__(self, message: Message) -> None:
        if self.closed:  # the caller was told that it took too long
            return
        if message["type"] == "http.response.start":
            if message["status"] == 500 and self.asked.status is not None:
                message = {**message, "status": self.asked.status}
            self.started = True
            self.begun.set()
        await self._send(message)


class _Replay:
    """A `receive` that gives the body which was read, and then waits for the caller's end."""

    def __init__(self, body: bytes, receive: Receive):
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self.gone = asyncio.ensure_future(receive())  # completes when the sender has gone

    async def __call__(self) -> Message:
        if self._message is not None:
            message, self._message = self._message, None
            return message
        return await asyncio.shield(self.gone)


def _announced(scope: Scope) -> int:
    """The length of the body by its header; 0 if it is not stated. Raises Refusal."""
    length = read_headers(scope).get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise Refusal(400, "Content-Length is no number.")
    return int(length)


def _boundary(scope: Scope) -> bytes:
    """What stands before each part of a form. Raises Refusal."""
    kind = read_headers(scope).get("content-type", "")
    _, found, boundary = kind.partition("boundary=")
    boundary = boundary.partition(";")[0].strip().strip('"')
    if not (kind.lower().startswith("multipart/form-data") and found and 0 < len(boundary) <= 200):
        raise Refusal(400, "An upload is a form: multipart/form-data with a boundary.")
    return b"--" + boundary.encode("latin-1")


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """The blocks of a body that are not empty. Raises Refusal if they come too slowly."""
    deadline = time.monotonic() + RECEIVE_SECONDS
    while True:
        try:
            seconds = max(0.0, deadline - time.monotonic())
            message = await asyncio.wait_for(receive(), seconds)
        except TimeoutError:
            raise Refusal(*SLOW_BODY) from None
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The request ended early.")
        if part := message.get("body", b""):
            deadline += len(part) / RECEIVE_RATE
            yield part
        if not message.get("more_body", False):
            return


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("a request that took too long failed: %r", error)
