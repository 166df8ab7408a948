"""ASGI middleware that limits what one visitor can use of the server: bytes, time, places.

Behind the Guard and in front of Gradio, which reads bodies of any size and parses anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grpo_core.errors import StudioError
from ui.server.bodies import Bodies
from ui.server.calls import SHOW, read_call
from ui.server.guard import Refusal, refuse
from ui.server.lanes import Busy, Lane
from ui.server.queued import PATHS, QueuedCalls
from ui.server.uploads import Uploads
from ui.server.visitor import RequestState, address, request_state, signed_in

MIB = 1 << 20
MAX_BYTES = 2_000_000  # of a request that is no upload
MAX_BUFFERED = 64 * MIB  # of all requests whose bodies are being read
# Kind, and how many requests of one visitor and of all are open at once.
STREAM = "stream", 24, 200  # server-sent events
TOOLS = "tool", 4, 12  # calls of MCP, which hold a thread
UPLOAD = "upload", 3, 12
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
TOO_MANY = 429, "You have too many requests waiting here. Try again in a moment.", 5
STREAMS = ("/queue/data", "/heartbeat/", "/upload_progress", "/call/")
LOGIN = "/login"

log = logging.getLogger("grpo_studio")


class Traffic:
    """Reads bodies within limits, lets visitors wait for their turn, and bounds every answer."""

    def __init__(
        self,
        app: ASGIApp,
        is_slow: Callable[[Scope, dict[str, Any]], bool],
        check_upload: Callable[[], object] = lambda: None,
    ):
        """is_slow(scope, JSON): whether a request may take long.

        check_upload: raises StudioError while the server keeps no more files.
        """
        self.app = app
        self._check_upload = check_upload
        self._is_slow = is_slow
        self._lanes = {name: Lane(**limits) for name, limits in LANES.items()}
        self._places: Counter[tuple[str, str]] = Counter()  # (kind, address) -> open requests
        self._bodies = Bodies(MAX_BUFFERED, TOO_MANY)
        self._uploads = Uploads(app)
        self._queued = QueuedCalls()
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        current = RequestState(address(scope))
        token = request_state.set(current)
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
            request_state.reset(token)

    async def _handle(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Raises Refusal."""
        visitor = answer.state.address
        path = scope["path"].removeprefix("/gradio_api").rstrip("/")
        method, is_tool = scope["method"], path.startswith("/mcp")
        is_stream = method == "GET" and path.startswith(STREAMS)
        is_private = is_stream or (method == "POST" and path != LOGIN)
        if is_private and not (is_tool or signed_in(scope)):
            raise Refusal(401, "Sign in first.")
        if method == "POST" and path == "/upload":
            try:
                await run_in_threadpool(self._check_upload)
            except StudioError as error:
                raise Refusal(507, str(error)) from None
            async with self._place(visitor, *UPLOAD):
                await self._uploads(scope, receive, answer, visitor)
            return
        body = await self._bodies.read(scope, receive, MAX_BYTES)
        lane = "page" if path in PAGES else "quick"
        if method == "POST" and path != LOGIN:
            content = read_call(scope, body)
            if path.startswith(PATHS):
                self._queued.admit(visitor, content, scope["app"].get_blocks()._queue)
            body = orjson.dumps(content)  # so that Gradio opens what was checked
            lane = "slow" if self._is_slow(scope, content) else "quick"
        if is_tool or is_stream:
            async with self._place(visitor, *(TOOLS if method == "POST" else STREAM)):
                await self.app(scope, _Replay(body, receive), answer)
            return
        limit = SHOW_SECONDS if path == SHOW else CALL_SECONDS
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
            async with lane.turn(answer.state.address):
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
    async def _place(self, visitor: str, kind: str, each: int, total: int) -> AsyncIterator[None]:
        """Hold one of a visitor's places. Raises Refusal."""
        taken = sum(n for (other, _), n in self._places.items() if other == kind)
        if self._places[kind, visitor] >= each or taken >= total:
            raise Refusal(*TOO_MANY)
        self._places[kind, visitor] += 1
        try:
            yield
        finally:
            self._places[kind, visitor] -= 1
            if not self._places[kind, visitor]:
                del self._places[kind, visitor]


class _Answer:
    """The `send` of a request: knows when the answer begins, and corrects its status."""

    def __init__(self, send: Send, state: RequestState):
        self.state = state
        self.started = self.closed = False
        self.begun = asyncio.Event()
        self._send = send

    async def __call__(self, message: Message) -> None:
        if self.closed:  # the caller was told that it took too long
            return
        if message["type"] == "http.response.start":
            if message["status"] == 500 and self.state.status is not None:
                message = {**message, "status": self.state.status}
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


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("a request that took too long failed: %r", error)
