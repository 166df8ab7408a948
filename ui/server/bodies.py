"""Reads the bodies of requests within time limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.types import Receive, Scope

from ui.server.guard import Refusal, read_headers

# A body must come at this rate, after a grace time. A person on a slow line is above it.
RECEIVE_SECONDS = 10.0
RECEIVE_RATE = 16 << 10


def too_large(max_bytes: int) -> Refusal:
    return Refusal(413, f"A request may have at most {max_bytes:,} bytes.")


def announced(scope: Scope) -> int:
    """The length of the body by its header; 0 if it is not stated. Raises Refusal."""
    length = read_headers(scope).get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise Refusal(400, "Content-Length is not a number.")
    return int(length)


class Bodies:
    """Reads whole bodies; those being read share a fixed amount of memory."""

    def __init__(self, max_buffered: int, full: tuple[int, str, int]):
        """max_buffered: bytes of all bodies that are being read. full: the Refusal above that."""
        self.buffered = 0
        self._max_buffered, self._full = max_buffered, full

    async def read(self, scope: Scope, receive: Receive, max_bytes: int) -> bytes:
        """The whole body. Raises Refusal."""
        if announced(scope) > max_bytes:
            raise too_large(max_bytes)
        body = bytearray()
        try:
            async for part in parts(receive):
                body += part
                self.buffered += len(part)
                if len(body) > max_bytes:
                    raise too_large(max_bytes)
                if self.buffered > self._max_buffered:
                    raise Refusal(*self._full)
        finally:
            self.buffered -= len(body)
        return bytes(body)


async def parts(receive: Receive) -> AsyncIterator[bytes]:
    """The blocks of a body that are not empty. Raises Refusal if they come too slowly."""
    deadline = time.monotonic() + RECEIVE_SECONDS
    while True:
        try:
            seconds = max(0.0, deadline - time.monotonic())
            message = await asyncio.wait_for(receive(), seconds)
        except TimeoutError:
            raise Refusal(408, "The request came too slowly.") from None
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The request ended early.")
        if part := message.get("body", b""):
            deadline += len(part) / RECEIVE_RATE
            yield part
        if not message.get("more_body", False):
            return
