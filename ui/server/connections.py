"""Connections that send or read too slowly are closed, and one visitor cannot take all of them.

uvicorn has no time limit for headers and none for readers. Gradio builds uvicorn's server, so its
configuration is changed after the launch.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import defaultdict
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ui.server.guard import MALFORMED, Refusal, read_headers, refuse

HEADER_SECONDS = 10.0  # from the first byte of a request, or the connection, to the last header
READER_SECONDS = 30.0  # in which a reader must take something
ALL = 600  # connections at once; fewer where the process may open few files
EACH = 256  # of one address


class LimitedProtocol(H11Protocol):
    """A connection with time limits. Where too many are open, the oldest idle ones are closed.

    open: all connections by address, oldest first.
    """

    open: ClassVar[defaultdict[str, dict[LimitedProtocol, None]]] = defaultdict(dict)
    max_open = ALL

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._peer = self.client[0] if self.client else ""
        if not self._make_room():
            transport.abort()
        self.open[self._peer][self] = None
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open[self._peer].pop(self, None)
        if not self.open[self._peer]:
            del self.open[self._peer]
        for timer in (self._deadline, self._reader):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered: headers are missing, or the next request is."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_incomplete(self) -> bool:
        """Whether there is no complete request."""
        return self.is_idle or (self.cycle.more_body and not self.cycle.response_started)

    def _watch(self) -> None:
        """Start the time limit for headers, or end it where they are complete."""
        if not self.is_idle:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _make_room(self) -> bool:
        """Close a connection without a complete request when there are too many.

        It is one of this address, or of the address with the most. False if there is none.
        """
        peer = self._peer
        if len(self.open[peer]) < min(EACH, self.max_open // 2):
            if sum(map(len, self.open.values())) < self.max_open:
                return True
            peer = max(self.open, key=lambda other: len(self.open[other]))
        waiting = next((c for c in self.open[peer] if c.is_incomplete), None)
        if waiting is not None:
            waiting.transport.abort()
        return waiting is not None


class NeedsHost:
    """Refuses malformed headers in front of Gradio's own middleware, which fails on some."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                if not read_headers(scope).get("host"):
                    raise Refusal(*MALFORMED)
            except Refusal as refusal:
                await refuse(send, refusal)
                return
        await self.app(scope, receive, send)


def limit_connections(server: uvicorn.Server) -> None:
    """Apply the limits to every connection that a running server accepts from now on."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    LimitedProtocol.max_open = min(ALL, max(16, soft // 3))  # each may also have a file open
    config = server.config
    config.loaded_app = NeedsHost(config.loaded_app)
    config.http_protocol_class = LimitedProtocol
    config.ws_protocol_class = None  # no route is a WebSocket
    # One line for each broken request would fill the disk.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
